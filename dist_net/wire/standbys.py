"""Where a run's server may be: the standbys that could replace it, and the order to try them. Pure.

The server sends the list as one text, ``ADDRESS KEY ADDRESS KEY ...``, to everyone who stays in
touch with it. A key is a standby's public key in Z85, or NO_KEY.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dist_net.wire.token import ADDRESS

PATIENCE = 3
"""A peer waits for a silent server for so many heartbeat timeouts: a busy server answers late, and
all its workers would leave at once."""

RANDOM_BITS, STARTS_BITS = 32, 16
"""Of a term, from the last bit on: random ones, the starts in place, and then the takeovers."""

NO_KEY = "-"
KEY_LENGTH = 40  # in Z85
MAX_STANDBYS = 8


class Standby(NamedTuple):
    """The address at which a standby would be the server, and its public key; "" without keys."""

    address: str
    public_key: str = ""

    @property
    def name(self) -> str:
        """What distinguishes it from others; a restarted one may have another address."""
        return self.public_key or self.address


NOWHERE = Standby("")


def term_number(term: int) -> int:
    """Return the number of a term's host in a run: 1 for the first, one more for each takeover."""
    return 1 + (term >> (RANDOM_BITS + STARTS_BITS))


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

    ``current``: None is the address that this process was passed. ``term``: of the server that
    was accepted last.
    """

    def __init__(self, own: str = "") -> None:
        self.term = 0
        self._own = own
        self._places: deque[Standby | None] = deque([None])

    @property
    def current(self) -> Standby | None:
        return self._places[0]

    @property
    def text(self) -> str:
        """The list of the places, from the current one on."""
        return standbys_text(filter(None, self._places))

    def accepts(self, report: Mapping[str, Any]) -> bool:
        """Take in a server's report; return False if another server has replaced it.

        If both terms are the first of a run, it is another run.
        """
        term, text = report.get("term", 0), report.get("standby_list", "")
        if not isinstance(term, int) or (term < self.term and term_number(self.term) > 1):
            return False
        self.term = term
        self.learn(str(text))
        return True

    def learn(self, text: str) -> None:
        """Take in the list of the server at the current place."""
        others = [each for each in standbys_in(text) if each.address != self._own]
        self._places = deque(dict.fromkeys([self.current, *others, None]))

    def turn(self) -> int:
        """Turn to the next place, since the server is silent here; return how many others exist."""
        self._places.rotate(-1)
        return len(self._places) - 1
