"""Asks a running parameter server, or inference pool, for its state, and a server for weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar

from dist_net.errors import ProtocolError, RecipeError
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.nets.recipes.recipe import recipe_names
from dist_net.wire.codec import MAX_ARRAY_BYTES
from dist_net.wire.messages import (
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
from dist_net.wire.security import PeerKeys
from dist_net.wire.transport import ClientSocket

POLL_S = 0.1
NO_RECORDS = 1 << 62  # an index of metric records beyond all that there are

Reply = TypeVar("Reply", StatusReport, Snapshot, RecipeOffer)


class Observer:
    """A connection to one server; a call that waits longer than ``timeout_s`` raises NoAnswerError.

    ``while_waiting`` is called several times a second meanwhile, and may raise to end the wait. A
    frame of more than ``max_array_bytes`` is not received.
    """

    def __init__(
        self,
        address: str,
        keys: PeerKeys | None = None,
        timeout_s: float = 10.0,
        while_waiting: Callable[[], None] = lambda: None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
    ) -> None:
        self._address = address
        self._socket = ClientSocket(address, keys, max_array_bytes)
        self._timeout_s = timeout_s
        self._while_waiting = while_waiting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def status(self, first_record: int = 0) -> dict[str, Any]:
        """The run's report, with the metric records from ``first_record`` on."""
        return self._report(StatusRequest(first_record))

    def run_value(self, name: str) -> Any:
        """One value of a training run's report; raises ProtocolError where nothing is trained."""
        report = self.status(NO_RECORDS)
        if name not in report:
            raise ProtocolError(
                f"{self._address} trains nothing: its report has no {name!r}; expected the address "
                f"of a parameter server"
            )
        return report[name]

    def shut_down(self, reason: str) -> dict[str, Any]:
        """Ends the run with a checkpoint; gives the last report."""
        return self._report(Shutdown(reason))

    def snapshot(self) -> Snapshot:
        return self._ask(SnapshotRequest(), Snapshot)

    def recipe(self) -> RecipeOffer:
        """What the server trains; its files are not checked yet."""
        return self._ask(RecipeRequest(), RecipeOffer)

    def _report(self, request: Message) -> dict[str, Any]:
        text = self._ask(request, StatusReport).report
        try:
            report = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a server's report is no JSON: {text[:80]!r}") from error
        if not isinstance(report, dict):
            raise ProtocolError(f"a server's report must be an object: {text[:80]!r}")
        return report

    def _ask(self, request: Message, kind: type[Reply]) -> Reply:
        self._socket.send(request)
        deadline = time.monotonic() + self._timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            reply = self._socket.receive(min(left_s, POLL_S))
            if isinstance(reply, kind):
                return reply
            if isinstance(reply, Refuse) and not reply.may_rejoin:
                raise ProtocolError(f"the server refused {type(request).__name__}: {reply.reason}")
            self._while_waiting()
            if isinstance(reply, Refuse):
                time.sleep(POLL_S)
                self._socket.send(request)
        raise self._socket.no_answer(self._timeout_s)


def recipe_at(address: str, keys: PeerKeys | None, timeout_s: float) -> str:
    """The name of the recipe that the server there trains.

    Raises NoAnswerError, and RecipeError for a recipe that is a file, and so has no name.
    """
    with Observer(address, keys, timeout_s) as observer:
        reference = str(observer.run_value("recipe"))
    if reference == IMAGES:
        raise RecipeError(
            f"the server at {address} trains on a folder of images, which only its own workers "
            f"have prepared; expected more of those: dist-net train FOLDER --workers N"
        )
    if reference not in recipe_names():
        raise RecipeError(
            f"the server at {address} trains the recipe of a file, {reference!r}; expected the "
            f"path of the same file on this host: dist-net worker PATH --connect {address}"
        )
    return reference
