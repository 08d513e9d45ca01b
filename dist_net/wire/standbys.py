"""Where a run's server may be: the standbys that could replace it, and the order to try them. Pure.

The server sends the list as one text, ``ADDRESS KEY ADDRESS KEY ...``, to everyone who stays in
touch with it. A key is a standby's public key in Z85, or NO_KEY.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from dist_net.wire.token import ADDRESS

PATIENCE = 3
"""A peer waits for a silent server for so many heartbeat timeouts: a busy server answers late, and
all its workers would leave at once."""

NO_KEY = "-"
KEY_LENGTH = 40  # in Z85
MAX_STANDBYS = 8


class Standby(NamedTuple):
    """The address at which a standby would be the server, and its public key; "" without keys."""

    address: str
    public_key: str = ""


def standbys_text(standbys: Iterable[Standby]) -> str:
    """Return the text of a list of standbys."""
    return " ".join(f"{address} {key or NO_KEY}" for address, key in standbys)


def standbys_in(text: str) -> list[Standby]:
    """Return the standbys in a text; ignore what is beyond ``MAX_STANDBYS``, or invalid."""
    words = text.split(" ")[: 2 * MAX_STANDBYS]
    found: list[Standby] = []
    for address, key in zip(words[::2], words[1::2], strict=False):
        is_address = ADDRESS.fullmatch(address.removeprefix("tcp://"))
        if is_address and (key == NO_KEY or len(key) == KEY_LENGTH):
            found.append(Standby(address, "" if key == NO_KEY else key))
    return found


class ServerRoute:
    """The places to look for a server, in order, except ``own``, an address of this process.

    ``current``: None is the address that this process was passed.
    """

    def __init__(self, own: str = "") -> None:
        self._own = own
        self._places: deque[Standby | None] = deque([None])
        self._text = ""

    @property
    def current(self) -> Standby | None:
        return self._places[0]

    def learn(self, text: str) -> None:
        """Take in the list of the server at the current place."""
        if text != self._text:
            self._text = text
            others = [each for each in standbys_in(text) if each.address != self._own]
            self._places = deque(dict.fromkeys([self.current, *others, None]))

    def turn(self) -> bool:
        """Turn to the next place, since the server is silent at this one; False: there is none."""
        self._places.rotate(-1)
        return len(self._places) > 1
