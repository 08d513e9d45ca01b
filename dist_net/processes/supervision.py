"""Supervision of a run's processes, in a thread: it goes on whatever the main thread does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Self

from dist_net.errors import ProcessFailedError
from dist_net.processes.crew import Crew
from dist_net.processes.replacement import ReplacedChild
from dist_net.processes.roles import Launcher

POLL_S = 0.1
STOPS_WITHIN_S = 2.0


class Supervision:
    """A context in which workers are started, and they and the server again when they die.

    Inside, both belong to this object; ``notify`` receives each message for the user once. Linux
    ends a process with the thread that started it, so end the processes before the context.
    """

    def __init__(
        self,
        launcher: Launcher,
        server: ReplacedChild,
        crew: Crew,
        notify: Callable[[str], None],
    ) -> None:
        self._launcher = launcher
        self._server = server
        self._crew = crew
        self._notify = notify
        self._address = ""
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = ThreadPoolExecutor(1, "supervision")

    def __enter__(self) -> Self:
        self._supervising = self._threads.submit(self._supervise)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def stop(self) -> None:
        """Start nothing any more."""
        self._is_over.set()
        wait([self._supervising], STOPS_WITHIN_S)

    def require_running(self) -> None:
        """Raise what ended the supervision, if anything has."""
        if self._supervising.done():
            self._supervising.result()

    def is_replaced(self, died: object) -> bool:
        """Wait until another server runs in the place of one that died; False if none will."""
        while self._server.child is died and not self._server.is_given_up:
            self.require_running()
            self._is_over.wait(POLL_S)
        return not self._server.is_given_up

    def look_after_workers(self, ended: Sequence[ReplacedChild]) -> ProcessFailedError | None:
        """Report workers that ended for reasons of their own; return why the last did, if all did.

        ``ended``: those that had ended before it was known that the run goes on.
        """
        with self._lock:
            self._crew.look_after(ended)
            return self._crew.failure

    def _supervise(self) -> None:
        self._look()
        while not self._is_over.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            if self._server.child.has_died and (said := self._server.look()) is not None:
                self._notify(said)
            if self._address != self._launcher.address:  # workers have to look elsewhere
                self._address = self._launcher.address
                self._crew.start()
            # Why the others ended depends on whether the run goes on: see ``look_after_workers``.
            self._crew.look_after([each for each in self._crew.ended if each.child.has_died])
