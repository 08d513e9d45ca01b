"""Keeps the pool's processes on the gateway's host alive: the model loader and the workers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_net.cluster.child import Child, RunningChild, end
from dist_net.cluster.fork_server import ForkServer
from dist_net.errors import BadInputError, DistNetError, ProcessFailedError

logger = logging.getLogger(__name__)

FORK_SERVER = "fork-server"
SHORTEST_LIFE_S = 2.0  # a child that ends sooner is started again after a pause that doubles
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
MOST_EARLY_ENDS = 3
"""How often a child may end before the pool is ready; then it never will be."""


@dataclass(frozen=True)
class ChildCommand:
    """How one kind of child is started: ``python -m MODULE ARGUMENTS...``.

    Without a module it is forked by the pool's fork server.
    """

    name: str
    module: str
    arguments: tuple[str, ...]


@dataclass
class _Place:
    """A child that must be kept running."""

    command: ChildCommand
    child: RunningChild
    descriptor: int
    started_s: float
    pause_s: float


class PoolChildren:
    """A child for each command; one that ends is replaced.

    ``fork_server`` is the module of the fork server, which is a child like the others; it is
    started if there are commands without a module. Linux only.
    """

    def __init__(self, commands: Sequence[ChildCommand], fork_server: str, logs: Path) -> None:
        forking = ChildCommand(FORK_SERVER, fork_server, ())
        is_forked = any(not each.module for each in commands)
        self._commands: Sequence[ChildCommand] = (*([forking] if is_forked else []), *commands)
        self._forks = ForkServer(FORK_SERVER, fork_server, logs)
        self._logs = logs
        self._places: dict[int, _Place] = {}
        self._ends: Counter[str] = Counter()

    def start(
        self,
        ended: Callable[[int, str, str], None],
        failed: Callable[[DistNetError], bool],
    ) -> None:
        """Starts them, on the running event loop.

        ``ended(process_id, host, reason)`` is called when one has ended; ``failed(error)`` when
        another start would help as little, because of bad input or after ``MOST_EARLY_ENDS``: if it
        returns True, the child is not started again.
        """
        self._loop = asyncio.get_running_loop()
        self._ended, self._failed = ended, failed
        for command in self._commands:
            self._start(command, 0.0)

    def kill(self, process_id: int, host: str, reason: str) -> None:
        """Kills a child, even one that hangs or is stopped."""
        if process_id in self._places and host == socket.gethostname():
            logger.warning("event=child_killed process=%d reason=%s", process_id, reason)
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def close(self, grace_s: float) -> None:
        """Ends all children; those that take longer than ``grace_s`` are killed."""
        self._commands = ()
        for place in [*self._places.values()]:
            if place.command.name == FORK_SERVER:  # at once: it must not fork any more
                place.child.kill()
                self._forks.ended()
        for place in self._places.values():
            self._forget(place)
            place.child.terminate()
        end([place.child for place in self._places.values()], grace_s)

    def _start(self, command: ChildCommand, pause_s: float) -> None:
        if command not in self._commands:  # closed meanwhile
            return
        if command.name == FORK_SERVER:
            self._watch(command, pause_s, self._forks.start())
        elif command.module:
            child = Child(command.name, command.module, command.arguments, self._logs)
            self._watch(command, pause_s, child)
        else:
            self._forks.order(
                command.name, command.arguments, partial(self._watch, command, pause_s)
            )

    def _watch(self, command: ChildCommand, pause_s: float, child: RunningChild) -> None:
        descriptor = os.pidfd_open(child.process_id)  # readable when the process has ended
        place = _Place(command, child, descriptor, self._loop.time(), pause_s)
        self._places[child.process_id] = place
        self._loop.add_reader(descriptor, self._has_ended, place)

    def _has_ended(self, place: _Place) -> None:
        child = place.child
        self._forget(place)
        del self._places[child.process_id]
        child.wait(1.0)
        if place.command.name == FORK_SERVER:
            self._forks.ended()
        self._ended(child.process_id, socket.gethostname(), child.last_words)
        self._ends[child.name] += 1
        error = self._why_hopeless(child)
        if error is not None and self._failed(error):
            return
        logger.warning(
            "event=child_ended name=%s reason=%s log=%s", child.name, child.last_words, child.log
        )
        pause_s = 0.0
        if self._loop.time() - place.started_s < SHORTEST_LIFE_S:
            pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * place.pause_s))
        self._loop.call_later(pause_s, self._start, place.command, pause_s)

    def _why_hopeless(self, child: RunningChild) -> DistNetError | None:
        """Why another start would end as this child has; None if it may do better."""
        if child.exit_code == BadInputError.exit_code:
            return BadInputError(child.last_words)
        if self._ends[child.name] < MOST_EARLY_ENDS:
            return None
        return ProcessFailedError(
            f"{child.name} has ended {MOST_EARLY_ENDS} times before the pool was ready; the last "
            f"time, {child.last_words} (log: {child.log})"
        )

    def _forget(self, place: _Place) -> None:
        self._loop.remove_reader(place.descriptor)
        os.close(place.descriptor)
