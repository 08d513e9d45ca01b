"""Request the state of a parameter server or a serving pool, and a server's weights."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dist_net.errors import (
    DistNetError,
    InsecureAddressError,
    NoAnswerError,
    ProtocolError,
    RecipeError,
)
from dist_net.nets.recipe_origins import BuiltInOrigin, origin_of
from dist_net.wire.codec import MAX_ARRAY_BYTES
from dist_net.wire.connections import SETTLED_S, Contact
from dist_net.wire.messages import (
    ForgetMember,
    Message,
    RecipeOffer,
    RecipeRequest,
    Refuse,
    Shutdown,
    Snapshot,
    SnapshotRequest,
    StatusReport,
    StatusRequest,
)
from dist_net.wire.security import SERVER_PUBLIC, PeerKeys, write_key
from dist_net.wire.standbys import ServerPlaces
from dist_net.wire.transport import ClientSocket, ServerAccess, access_to

POLL_S = 0.1
NO_RECORDS = 1 << 62  # an index beyond all metric records

Reply = TypeVar("Reply", StatusReport, Snapshot, RecipeOffer)


class Observer(AbstractContextManager["Observer"]):
    """A connection to one server. A call raises NoAnswerError after ``timeout_s``, or when closed.

    Calls from several threads take turns, because a ZeroMQ socket must not be used by two at once.
    ``while_waiting`` is called several times a second during a call, with the seconds since its
    request, and may raise to end it. Frames of more than ``max_array_bytes`` are not received.
    If no process listens on the address, a call ends after ``nobody_s``.
    """

    def __init__(
        self,
        address: str,
        keys: PeerKeys | None = None,
        timeout_s: float = 10.0,
        while_waiting: Callable[[float], None] = lambda _: None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
        nobody_s: float = SETTLED_S,
    ) -> None:
        self._socket = ClientSocket(address, keys, max_array_bytes)
        self._timeout_s = timeout_s
        self._while_waiting = while_waiting
        self._nobody_s = nobody_s
        self._turn = threading.Lock()

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._socket.close()

    def status(self, first_record: int = 0, *reader: int) -> dict[str, Any]:
        """Return the run's report, with the metric records from ``first_record`` on."""
        return self._report(StatusRequest(first_record, *reader))

    def shut_down(self, reason: str) -> dict[str, Any]:
        """End the run with a checkpoint and return the last report."""
        return self._report(Shutdown(reason))

    def forget(self, name: str) -> dict[str, Any]:
        """Have a server count a voter as ended; return its report. Raise ProtocolError."""
        return self._report(ForgetMember(name))

    def snapshot(self, *reader: int) -> Snapshot:
        return self._request(SnapshotRequest(*reader), Snapshot)

    def recipe(self) -> RecipeOffer:
        """Return the server's recipe; its files are not checked yet."""
        return self._request(RecipeRequest(), RecipeOffer)

    def _report(self, request: Message) -> dict[str, Any]:
        text = self._request(request, StatusReport).report
        try:
            report = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a server's report is not JSON: {text[:80]!r}") from error
        if not isinstance(report, dict):
            raise ProtocolError(f"a server's report is not a JSON object: {text[:80]!r}")
        return report

    def _request(self, request: Message, kind: type[Reply]) -> Reply:
        with self._turn:
            self._socket.send(request)
            asked_s = time.monotonic()
            while (waited_s := time.monotonic() - asked_s) < self._timeout_s:
                reply = self._socket.receive(min(self._timeout_s - waited_s, POLL_S))
                if isinstance(reply, kind):
                    return reply
                if isinstance(reply, Refuse) and not reply.may_rejoin:
                    name = type(request).__name__
                    raise ProtocolError(f"the server refused {name}: {reply.reason}")
                if waited_s > self._nobody_s and self._socket.contact is Contact.NOBODY:
                    break
                self._while_waiting(waited_s)
                if isinstance(reply, Refuse):
                    time.sleep(POLL_S)
                    self._socket.send(request)
            raise self._socket.no_answer(waited_s)


def value_in(report: dict[str, Any], name: str, address: str) -> Any:
    """Return a value of a training run's report; raise ProtocolError if it is none."""
    if name not in report:
        raise ProtocolError(
            f"{address} is not training: its report has no {name!r}; expected the "
            f"address of a parameter server"
        )
    return report[name]


@dataclass
class Following:
    """A run that this process follows from server to server; ``server``: the last that answered.

    ``keys``: a directory of the keys for it, if it needs any, which other processes read.
    ``notify`` receives a text about each successor. ``digest``: of its recipe and data, for a
    standby, which must have the same; see ``LoadedRecipe.digest``. ``reader``: see
    ``StatusRequest``.
    """

    server: ServerAccess
    keys: Path | None = None
    notify: Callable[[str], None] = lambda _: None
    places: ServerPlaces = field(default_factory=ServerPlaces)
    digest: str = ""
    reader: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._given = self.server

    def words(self, address: str = "--connect", keys: str = "--keys") -> list[str]:
        """Return the options by which another process reaches the server."""
        own = [] if self.server.keys is None else [keys, str(self.keys)]
        return [address, self.server.address, *own]

    @contextmanager
    def observed(
        self,
        timeout_s: float,
        first_record: int = NO_RECORDS,
        while_waiting: Callable[[float], None] = lambda _: None,
    ) -> Iterator[tuple[Observer, dict[str, Any]]]:
        """Yield an observer of the server, and its report with the records from ``first_record``.

        Until ``timeout_s``, try each place in turn, at least once, then raise the first error.
        """
        until_s, failures = time.monotonic() + timeout_s, list[DistNetError]()
        with ExitStack() as opened:
            while True:
                try:
                    server = access_to(self.places.current, self._given)
                    observer = opened.enter_context(Observer(*server, timeout_s, while_waiting))
                    report = observer.status(first_record, *self.reader)
                    if self.places.accepts(report):
                        break
                    raise NoAnswerError(f"another server has replaced that at {server.address}")
                except (NoAnswerError, ProtocolError, InsecureAddressError) as error:
                    opened.close()
                    failures.append(error)
                    others = self.places.turn(time.monotonic())
                    if not others or (len(failures) > others and time.monotonic() > until_s):
                        raise failures[0] from None
                    time.sleep(POLL_S)
            if server != self.server:
                self.server = server
                if server.keys is not None and self.keys is not None:
                    (self.keys / SERVER_PUBLIC).unlink(missing_ok=True)
                    write_key(self.keys / SERVER_PUBLIC, server.keys.server_public)
                self.notify(f"the run continues at {server.address}")
            yield observer, report


def recipe_at(address: str, keys: PeerKeys | None, timeout_s: float) -> str:
    """Return the built-in recipe that a server trains. Raise NoAnswerError, or RecipeError."""
    with Observer(address, keys, timeout_s) as observer:
        reference = str(value_in(observer.status(NO_RECORDS), "recipe", address))
    if not isinstance(origin_of(reference), BuiltInOrigin):
        raise RecipeError(
            f"the server at {address} trains {reference!r}, which is no built-in recipe; pass the "
            f"path of the same file on this host: dist-net worker PATH --connect {address}, or let "
            f"the server's token send its recipe: dist-net join"
        )
    return reference
