"""The gateway's side of the process that its workers are forked from; see `forking`."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dist_net.cluster.child import Child, ForkedProcess, RunningChild, outputs
from dist_net.cluster.forking import READY_TO_FORK
from dist_net.errors import ProcessFailedError

logger = logging.getLogger(__name__)

BORN_WITHIN_S = 5.0  # a fork takes some 10 ms; after so long the fork server hangs
START_AGAIN_S = 0.5  # after an attempt for which a resource was missing
LONGEST_WORD = 64
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class _Order(NamedTuple):
    name: str
    arguments: Sequence[str]
    born: Callable[[RunningChild], None]


class ForkServer:
    """Has processes forked one after the other, by ``python -m MODULE``: see `fork_on_orders`.

    They become children of this process. Call ``start`` on the running event loop, and again when
    the fork server has ended: the new one gets the orders that were not carried out.
    """

    def __init__(self, name: str, module: str, logs: Path) -> None:
        self._name = name
        self._module = module
        self._logs = logs
        self._orders: deque[_Order] = deque()
        self._is_free = False
        self._overdue: asyncio.TimerHandle | None = None

    def start(self) -> Child:
        """Starts the process that forks others."""
        _adopt_orphans()
        self._loop = asyncio.get_running_loop()
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with its:
            self._child = Child(self._name, self._module, (), self._logs, its)
        self._loop.add_reader(self._socket, self._receive)
        return self._child

    def order(
        self, name: str, arguments: Sequence[str], born: Callable[[RunningChild], None]
    ) -> None:
        """Has a process forked, and ``born`` called with it."""
        self._orders.append(_Order(name, arguments, born))
        self._give_order()

    def ended(self) -> None:
        """The process that ``start`` returned has ended."""
        self._is_free = False
        self._expect_nothing()
        self._loop.remove_reader(self._socket)
        self._socket.shutdown(socket.SHUT_RD)  # a process that announces itself only now ends
        while self._hear():
            pass
        self._socket.close()
        with suppress(ChildProcessError):  # the processes that it had only half forked
            while os.waitpid(-self._child.process_id, os.WNOHANG)[0]:
                pass

    def _receive(self) -> None:
        said = self._hear()
        if said:
            self._expect_nothing()
            self._is_free = True
            self._give_order()
        elif said is not None:  # the fork server is about to end, which will be noticed
            self._loop.remove_reader(self._socket)

    def _hear(self) -> bytes | None:
        """Reads that the fork server is ready, or a new process's id; empty at the end; None if
        there is nothing to read."""
        try:
            said = self._socket.recv(LONGEST_WORD)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""
        if said and said != READY_TO_FORK:
            order = self._orders.popleft()
            order.born(RunningChild(order.name, self._logs, ForkedProcess(int(said))))
        return said

    def _give_order(self) -> None:
        if not (self._is_free and self._orders):
            return
        order = self._orders[0]
        words = json.dumps([order.name, *order.arguments]).encode()
        try:
            with outputs(order.name, self._logs) as files, suppress(BrokenPipeError):
                socket.send_fds(self._socket, [words], [each.fileno() for each in files])
        except OSError as error:  # no descriptor is free, or the logs cannot be opened
            logger.warning("event=child_not_started name=%s reason=%s", order.name, error)
            self._loop.call_later(START_AGAIN_S, self._give_order)
            return
        self._is_free = False
        self._overdue = self._loop.call_later(BORN_WITHIN_S, self._give_up)

    def _expect_nothing(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        self._overdue = None
        self._receive()  # what came while this process itself stood still counts
        if self._is_free or self._overdue is not None:
            return
        logger.warning("event=fork_server_killed reason=nothing born in %g s", BORN_WITHIN_S)
        self._child.kill()


def _adopt_orphans() -> None:
    """Makes this process adopt its descendants whose parent has ended."""
    library = ctypes.CDLL(None)
    can_adopt = hasattr(library, "prctl")
    if not can_adopt or library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise ProcessFailedError(
            f"{sys.platform} does not let a gateway adopt the workers that are forked for it; "
            f"expected Linux"
        )
