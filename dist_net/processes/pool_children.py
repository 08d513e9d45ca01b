"""Keep the pool's processes on the gateway's host running: the model loader and the workers."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_net.errors import BadInputError, DistNetError, ProcessFailedError
from dist_net.processes.child import RunningChild, end
from dist_net.processes.fork_server import RETRY_S, ForkServer
from dist_net.processes.restart_budget import RestartBudget
from dist_net.processes.roles import LocalProcesses, Role

logger = logging.getLogger(__name__)

FORK_SERVER = "fork-server"
MAX_EARLY_ENDS = 3
"""The pool fails to start if a child ends this often before the pool is ready."""


@dataclass(frozen=True)
class _Place:
    """A running child, and how it is watched and replaced."""

    role: Role
    child: RunningChild
    descriptor: int
    started_s: float


class PoolChildren:
    """Run a child for each role, and replace children that end. Linux only.

    If a role has no module, a fork server is started as a further child; ``fork_server`` is its
    module.
    """

    def __init__(self, roles: Sequence[Role], fork_server: str, logs: Path) -> None:
        forking = Role(FORK_SERVER, fork_server, ())
        is_forked = any(not each.module for each in roles)
        self._roles: Sequence[Role] = (*([forking] if is_forked else []), *roles)
        self._forks = ForkServer(FORK_SERVER, fork_server, logs)
        self._processes = LocalProcesses(logs)
        self._places: dict[int, _Place] = {}
        self._ends: Counter[str] = Counter()
        self._budgets = {each.name: RestartBudget(math.inf) for each in self._roles}

    def start(
        self,
        ended: Callable[[int, str, str], None],
        failed: Callable[[DistNetError], bool],
    ) -> None:
        """Start the children, on the running event loop.

        Call ``ended(process_id, host, reason)`` when a child has ended, and ``failed(error)`` if
        starting it again would fail too: after bad input or ``MAX_EARLY_ENDS``. If ``failed``
        returns True, the child is not started again.
        """
        self._loop = asyncio.get_running_loop()
        self._ended, self._failed = ended, failed
        for role in self._roles:
            self._start(role)

    def kill(self, process_id: int, host: str, reason: str) -> None:
        """Kill a child, even if it hangs or is stopped."""
        if process_id in self._places and host == socket.gethostname():
            logger.warning("event=child_killed process=%d reason=%s", process_id, reason)
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def close(self, grace_s: float) -> None:
        """End all children, and kill those that still run after ``grace_s``."""
        self._roles = ()
        for place in [*self._places.values()]:
            if place.role.name == FORK_SERVER:  # first, because it must not fork any more
                place.child.kill()
                self._forks.ended()
        for place in self._places.values():
            self._forget(place)
            place.child.terminate()
        end([place.child for place in self._places.values()], grace_s)

    def _start(self, role: Role) -> None:
        if role not in self._roles:  # `close` was called
            return
        try:
            if role.name == FORK_SERVER:
                self._watch(role, self._forks.start())
            elif role.module:
                self._watch(role, self._processes.start(role))
            else:
                self._forks.order(role.name, role.words({}), partial(self._watch, role))
        except OSError as error:  # no free descriptor, or the logs cannot be opened
            if not self._failed(ProcessFailedError(f"{role.name} cannot be started: {error}")):
                logger.warning("event=child_not_started name=%s reason=%s", role.name, error)
                self._loop.call_later(RETRY_S, self._start, role)

    def _watch(self, role: Role, child: RunningChild) -> None:
        try:
            descriptor = os.pidfd_open(child.process_id)  # readable when the process has ended
        except OSError as error:
            logger.warning("event=child_not_watched name=%s reason=%s", role.name, error)
            self._loop.call_later(RETRY_S, self._watch, role, child)
            return
        place = _Place(role, child, descriptor, self._loop.time())
        self._places[child.process_id] = place
        self._loop.add_reader(descriptor, self._has_ended, place)

    def _has_ended(self, place: _Place) -> None:
        child = place.child
        self._forget(place)
        del self._places[child.process_id]
        child.wait(1.0)
        if place.role.name == FORK_SERVER:
            self._forks.ended()
        self._ended(child.process_id, socket.gethostname(), child.last_words)
        self._ends[child.name] += 1
        error = self._why_hopeless(child)
        if error is not None and self._failed(error):
            return
        logger.warning(
            "event=child_ended name=%s reason=%s log=%s", child.name, child.last_words, child.log
        )
        pause_s = self._budgets[child.name].pause_s(self._loop.time() - place.started_s)
        if pause_s is not None:
            self._loop.call_later(pause_s, self._start, place.role)

    def _why_hopeless(self, child: RunningChild) -> DistNetError | None:
        """Return the error that ends any further start too; None if a restart may succeed."""
        if child.exit_code == BadInputError.exit_code:
            return BadInputError(child.last_words)
        if self._ends[child.name] < MAX_EARLY_ENDS:
            return None
        return ProcessFailedError(
            f"{child.name} has ended {MAX_EARLY_ENDS} times before the pool was ready; the last "
            f"reason: {child.last_words} (log: {child.log})"
        )

    def _forget(self, place: _Place) -> None:
        self._loop.remove_reader(place.descriptor)
        os.close(place.descriptor)
