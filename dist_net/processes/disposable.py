"""Processes that read what others wrote, with limits, and are thrown away afterwards. Linux only.

the user's process ─ orders ─▶ a fork server without threads ─ forks ─▶ one process per order
        ▲──────────────────────────── a pipe ───────────────────────────────────┘
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

from dist_net.errors import ProcessFailedError
from dist_net.processes.entry import terminate_after
from dist_net.processes.fork_server import adopt_orphans
from dist_net.processes.forking import READY_TO_FORK, fork_on_orders

logger = logging.getLogger(__name__)

STDOUT, STDERR = 1, 2
POLL_S, POLLS = 0.005, 200  # for the end of a killed process
PIPE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 64 << 20
MAX_ORDER_ANSWER_BYTES = 64

Send = Callable[[object], None]
"""Sends bytes, texts and lists of them to the user's process."""


def limit_process(memory_bytes: int, computing_s: int, open_files: int) -> None:
    """Limit this process's memory, computing time and open files; it writes no core file."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    for kind, limit in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes),
        (resource.RLIMIT_CPU, computing_s),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))


class DisposableProcesses:
    """Forks processes that call ``run(words, send)``. Create it before threads and ZeroMQ contexts.

    Raise ProcessFailedError if this system cannot.
    """

    def __init__(self, run: Callable[[list[str], Send], None]) -> None:
        adopt_orphans()
        parent = os.getpid()
        self._orders, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server_id = os.fork()
        if not self._server_id:
            self._orders.close()
            with suppress(BaseException):  # a traceback would mislead
                fork_on_orders(orders, lambda words: _run_disposably(run, [*words], parent))
            os._exit(0)
        orders.close()

    def start(self, name: str, *words: str) -> DisposableProcess:
        """Fork a process. Raise ProcessFailedError if the fork server has ended."""
        reader, writer = os.pipe()
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            order = json.dumps([name, *words]).encode()
            socket.send_fds(self._orders, [order], [writer, STDERR])
            while (answer := self._orders.recv(MAX_ORDER_ANSWER_BYTES)) == READY_TO_FORK:
                pass
            return DisposableProcess(int(answer), reader)
        except (OSError, ValueError) as error:
            os.close(reader)
            raise ProcessFailedError(f"no process for {name} could be forked: {error}") from error
        finally:
            os.close(writer)

    def close(self) -> None:
        """End the fork server; start no process afterwards."""
        self._orders.shutdown(socket.SHUT_RDWR)  # also if another process has its descriptor
        self._orders.close()
        os.waitpid(self._server_id, 0)


class DisposableProcess:
    """A forked process and its messages."""

    def __init__(self, process_id: int, reader: int) -> None:
        self.process_id = process_id
        self._reader = reader
        os.set_blocking(reader, False)
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE_BYTES)
        self.end_reason = ""
        """Why it has ended; empty while it runs."""

    def received(self) -> Iterator[Any]:
        """Yield what was sent since the last call. Never blocks."""
        try:
            while content := os.read(self._reader, PIPE_BYTES):
                self._unpacker.feed(content)
                yield from self._unpacker
        except BlockingIOError:
            return
        except (ValueError, msgpack.UnpackException) as error:
            logger.warning("not_understood process=%d error=%s", self.process_id, error)
        self.kill()

    def kill(self) -> None:
        """End it, if it still runs, and wait until it is gone; a second at most."""
        if self.end_reason:
            return
        os.kill(self.process_id, signal.SIGKILL)
        os.close(self._reader)
        self.end_reason = "killed, and it does not end"  # in a call of a dead file server
        for _ in range(POLLS):
            process_id, status = os.waitpid(self.process_id, os.WNOHANG)
            if process_id:
                code = os.waitstatus_to_exitcode(status)
                self.end_reason = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
                return
            time.sleep(POLL_S)


def _run_disposably(run: Callable[[list[str], Send], None], words: list[str], parent: int) -> int:
    """Call ``run`` in the forked process; its stdout is the pipe. Return the exit code."""
    terminate_after(parent)
    with os.fdopen(os.dup(STDOUT), "wb") as pipe:
        os.dup2(STDERR, STDOUT)  # for the prints of others' code

        def send(message: object) -> None:
            pipe.write(msgpack.packb(message))
            pipe.flush()

        run(words, send)
    return 0
