"""Where a run's server may be: the standbys that could replace it, and the order to try them. Pure.

The server sends the list as one text, ``ADDRESS KEY ADDRESS KEY ...``, to all peers in touch
with it. A key is a standby's public key in Z85, or NO_KEY.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dist_net.wire.token import ADDRESS

PATIENCE = 3
"""A peer waits for a silent server for this number of heartbeat timeouts: a busy server answers
late, and all its workers would leave at once."""

RANDOM_BITS, STARTS_BITS = 32, 16
"""Bits of a term, from the last on: random bits, the starts in place, and then the takeovers."""

NO_KEY = "-"
KEY_LENGTH = 40  # in Z85
MAX_STANDBYS = 8


class Standby(NamedTuple):
    """The address at which a standby would be the server, and its public key; "" without keys."""

    address: str
    public_key: str = ""

    @property
    def name(self) -> str:
        """The key, or else the address; a restarted standby may have another address."""
        return self.public_key or self.address


NOWHERE = Standby("")


def term_number(term: int) -> int:
    """Return the number of a term's host in a run: 1 for the first, one more for each takeover."""
    return 1 + (term >> (RANDOM_BITS + STARTS_BITS))


def standbys_text(standbys: Iterable[Standby]) -> str:
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


class ServerPlaces:
    """Where a run's server may be, its term, and since when it is silent. No I/O.

    ``given``: places that are always tried; None is the address that this process was passed.
    ``own``, an address of this process, is never tried. ``term``: of the server that was accepted
    last. ``heard_s``: when the newest request that it has answered was sent. ``tried_s``: when the
    ``current`` place was tried. Times are seconds on one monotonic clock.
    """

    def __init__(
        self, given: Iterable[Standby | None] = (None,), own: str = "", now: float = -math.inf
    ) -> None:
        self.term = 0
        self.heard_s = self.tried_s = now
        self._given = tuple(given)
        self._own = own
        self._places = deque(self._given)

    @property
    def current(self) -> Standby | None:
        return self._places[0] if self._places else None

    @property
    def text(self) -> str:
        return standbys_text(filter(None, self._places))

    @property
    def silent_since_s(self) -> float:
        return max(self.heard_s, self.tried_s)

    def accepts(self, report: Mapping[str, Any]) -> bool:
        """Take in a server's report; return False if another server has replaced it.

        If both terms are the first of a run, it is another run.
        """
        term, text = report.get("term", 0), report.get("standby_list", "")
        if not isinstance(term, int) or (term < self.term and term_number(self.term) > 1):
            return False
        self.term = term
        self.learn(standbys_in(str(text)))
        return True

    def learn(self, standbys: Iterable[Standby]) -> None:
        """Take in the list of the server at the current place."""
        others = [each for each in standbys if each.address != self._own]
        self._places = deque(dict.fromkeys([*self._places][:1] + others + [*self._given]))

    def turn(self, now: float) -> int:
        """Turn to the next place, since the server is silent; return how many others exist."""
        self.tried_s = now
        self._places.rotate(-1)
        return len(self._places) - 1
