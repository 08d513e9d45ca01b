"""Start and supervise the fork server from the gateway; `forking` is the fork server's own part."""

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

from dist_net.errors import ProcessFailedError
from dist_net.processes.child import Child, ForkedProcess, RunningChild, outputs
from dist_net.processes.forking import READY_TO_FORK

logger = logging.getLogger(__name__)

BORN_WITHIN_S = 5.0  # a fork takes about 10 ms; a fork server that needs longer than this hangs
RETRY_S = 0.5  # after the system refused a resource, such as a descriptor
MAX_MESSAGE_BYTES = 64
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class _Order(NamedTuple):
    name: str
    arguments: Sequence[str]
    born: Callable[[RunningChild], None]


class ForkServer:
    """Fork processes from a process that runs ``python -m MODULE``; see `fork_on_orders`.

    Forked processes become children of this process. Call ``start`` on the running event loop, and
    again after the fork server has ended: the new fork server receives the pending orders.
    """

    def __init__(self, name: str, module: str, logs: Path) -> None:
        self._name = name
        self._module = module
        self._logs = logs
        self._orders: deque[_Order] = deque()
        self._is_free = False

    def start(self) -> Child:
        """Start the fork server. Raise ProcessFailedError if this is not Linux."""
        _adopt_orphans()
        self._loop = asyncio.get_running_loop()
        self._socket, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with remote:
            self._child = Child(self._name, self._module, (), self._logs, remote)
        self._loop.add_reader(self._socket, self._receive)
        return self._child

    def order(
        self, name: str, arguments: Sequence[str], born: Callable[[RunningChild], None]
    ) -> None:
        """Fork a process as soon as possible, then call ``born`` with it."""
        self._orders.append(_Order(name, arguments, born))
        self._send_order()

    def ended(self) -> None:
        """Clean up after the process that ``start`` returned has ended."""
        self._loop.remove_reader(self._socket)
        self._socket.shutdown(socket.SHUT_RD)  # a process that announces itself from now on ends
        self._receive()
        self._socket.close()
        self._is_free = False
        with suppress(ChildProcessError):  # reap the intermediate processes of unfinished forks
            while os.waitpid(-self._child.process_id, os.WNOHANG)[0]:
                pass

    def _receive(self) -> None:
        """Read all messages: "ready", and the ids of new processes."""
        with suppress(BlockingIOError, ConnectionResetError):
            while message := self._socket.recv(MAX_MESSAGE_BYTES):
                if message != READY_TO_FORK:
                    order = self._orders.popleft()
                    order.born(RunningChild(order.name, self._logs, ForkedProcess(int(message))))
                self._is_free = True
                self._send_order()
            self._loop.remove_reader(self._socket)  # the fork server is about to end

    def _send_order(self) -> None:
        if not (self._is_free and self._orders):
            return
        order = self._orders[0]
        words = json.dumps([order.name, *order.arguments]).encode()
        # No descriptor, no worker: libzmq aborts a process that cannot accept a connection.
        try:
            with outputs(order.name, self._logs) as files, suppress(BrokenPipeError):
                socket.send_fds(self._socket, [words], [file.fileno() for file in files])
        except OSError as error:  # no free descriptor, or the logs cannot be opened
            logger.warning("event=child_not_started name=%s reason=%s", order.name, error)
            self._loop.call_later(RETRY_S, self._send_order)
            return
        self._is_free = False
        self._loop.call_later(BORN_WITHIN_S, self._kill_if_silent, order, self._child)

    def _kill_if_silent(self, order: _Order, child: Child) -> None:
        if child.exit_code is not None:
            return
        self._receive()  # the gateway itself may have been stopped, rather than the fork server
        if self._orders and self._orders[0] is order:
            logger.warning("event=fork_server_killed reason=no fork in %g s", BORN_WITHIN_S)
            child.kill()


def _adopt_orphans() -> None:
    """Let this process adopt descendants whose parent has ended."""
    library = ctypes.CDLL(None)
    can_adopt = hasattr(library, "prctl")
    if not can_adopt or library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise ProcessFailedError(
            f"on {sys.platform} a gateway cannot adopt forked workers; expected Linux"
        )
