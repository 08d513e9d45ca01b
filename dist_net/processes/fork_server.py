"""Start a pool's processes by a fork server, which runs ``fork_on_orders``.

Forked processes share the memory of the modules that the fork server has imported. Orders arrive on
a Unix socket, one at a time. A forked process becomes a child of the process that sent the order,
and keeps running if the fork server ends. It announces itself on the same socket, and ends if the
other end is closed. Without Linux's prctl each process is a new interpreter instead, which takes
0.7 s of CPU and four times the memory.

The fork server must have no threads, open sockets or ZeroMQ context: the forked process would lose
or share them. BLAS ends its threads before a fork, and starts them again on demand.
"""

import ctypes
import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from dist_net.errors import ProcessFailedError
from dist_net.processes.launcher import (
    EXIT_POLL_S,
    Child,
    LocalProcesses,
    ProcessSpec,
    RunningChild,
    outputs,
    parent_option,
)

logger = logging.getLogger(__name__)

ANSWERS_WITHIN_S = 5.0  # a fork takes about 10 ms; a fork server that needs longer than this hangs
STARTS_WITHIN_S = 300.0  # without a cache, numba compiles for 10 s, on a slow host for minutes
RETRY_S = 0.5  # after the system refused a resource, such as a descriptor
IDLE_POLL_S = 1.0  # SIGCHLD reports the end of a process at once
MAX_MESSAGE_BYTES = 64
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class ForkingProcesses(LocalProcesses):
    """A launcher: its process ``fork_server`` forks all others, if this one ``can_adopt`` them.

    See ``fork_on_orders`` for ``module``. Forked processes become children of this process. A fork
    server that is started after another has ended receives the orders that are pending.
    """

    def __init__(self, module: str, logs: Path) -> None:
        super().__init__(logs)
        self.fork_server = ProcessSpec("fork-server", module, ())
        library = ctypes.CDLL(None)
        self.can_adopt = hasattr(library, "prctl") and not library.prctl(
            _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
        )
        self._orders: deque[_ForkedProcess] = deque()
        self._answer_by_s = math.inf
        self._child: Child | None = None

    def poll(self) -> float:
        return EXIT_POLL_S if self._orders else IDLE_POLL_S

    def start(self, spec: ProcessSpec) -> RunningChild:
        """Start a process; a forked one may be born later. Raise OSError."""
        if not self.can_adopt:
            return super().start(spec)
        if spec == self.fork_server:
            self.stop_forking()
            self._socket, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.setblocking(False)
            self._retry_at_s, self._answer_by_s = 0.0, time.monotonic() + STARTS_WITHIN_S
            with remote:
                self._child = Child(spec, self._logs, stdin=remote)
            return self._child
        words = [spec.name, spec.module, *parent_option(), *spec.words({})]
        process = _ForkedProcess(self, json.dumps(words).encode(), spec.name)
        self._orders.append(process)
        self.receive()
        return RunningChild(spec.name, self._logs, process)

    def stop_forking(self) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        child.kill()
        self._socket.shutdown(socket.SHUT_RD)  # a process that announces itself from now on ends
        self._read()
        self._socket.close()
        with suppress(ChildProcessError):  # reap the intermediate processes of unfinished forks
            while os.waitpid(-child.process_id, os.WNOHANG)[0]:
                pass

    def receive(self) -> None:
        """Note new processes; send the next order; kill a fork server that is silent."""
        if self._child is None:
            return
        self._read()  # first: this process itself may have been stopped, not the fork server
        now = time.monotonic()
        if self._is_free and self._orders and now >= self._retry_at_s:
            self._send(self._orders[0])
        elif now > self._answer_by_s and self._child.exit_code is None:
            logger.warning("fork_server_killed reason=it did not answer in time")
            self._child.kill()

    @property
    def _is_free(self) -> bool:
        return self._answer_by_s == math.inf

    def cancel(self, process: "_ForkedProcess") -> None:
        """Do not fork a process, unless it is born meanwhile."""
        if process is self._orders[0] and self._child is not None and not self._is_free:
            self.stop_forking()
        if process in self._orders:
            self._orders.remove(process)

    def _read(self) -> None:
        """Read all messages: "ready", and the ids of new processes."""
        with suppress(BlockingIOError, ConnectionResetError):
            while message := self._socket.recv(MAX_MESSAGE_BYTES):
                if message != READY_TO_FORK:
                    self._orders.popleft().pid = int(message)
                self._answer_by_s = math.inf

    def _send(self, order: "_ForkedProcess") -> None:
        # No descriptor, no worker: libzmq aborts a process that cannot accept a connection.
        try:
            with outputs(order.name, self._logs) as files, suppress(BrokenPipeError):
                descriptors = [file.fileno() for file in files]
                socket.send_fds(self._socket, [order.words], descriptors)
        except OSError as error:  # no free descriptor, or the logs cannot be opened
            logger.warning("child_not_started name=%s reason=%s", order.name, error)
            self._retry_at_s = time.monotonic() + RETRY_S
        else:
            self._answer_by_s = time.monotonic() + ANSWERS_WITHIN_S


class _ForkedProcess:
    """A process that the fork server forks, see ``launcher.Process``; ``pid`` is -1 until then."""

    def __init__(self, forks: ForkingProcesses, words: bytes, name: str) -> None:
        self._forks = forks
        self.words, self.name = words, name
        self.pid = -1
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        if self._exit_code is None and self.pid == -1:
            self._forks.receive()
        if self._exit_code is None and self.pid != -1:
            process_id, status = os.waitpid(self.pid, os.WNOHANG)
            if process_id:
                self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self.pid == -1:
            self._forks.cancel(self)
        if self.pid == -1:
            self._exit_code = -number
        else:
            os.kill(self.pid, number)


READY_TO_FORK = b"ready"
MAX_ORDER_BYTES = 1 << 16
ADOPTION_POLL_S = 0.0005


def fork_on_orders(orders: socket.socket, run: Callable[[str, Sequence[str]], int]) -> None:
    """Fork a process for each order, until the other end of ``orders`` is closed.

    An order is a name, a module and arguments as a JSON list, with the descriptors for stdout and
    stderr. The new process calls ``run`` with the module and the arguments, and exits with the code
    that it returns. Raise ProcessFailedError or OSError if no process can be forked.
    """
    # A garbage collection in a forked process would write to every shared page, and so copy it.
    gc.collect()
    gc.freeze()
    with suppress(ConnectionError):  # the other end was closed before it read all messages
        orders.send(READY_TO_FORK)
        while (received := socket.recv_fds(orders, MAX_ORDER_BYTES, 2))[0]:
            order, outputs, _, _ = received
            name, module, *arguments = json.loads(order)
            _fork(orders, outputs, name, partial(run, module, arguments))
            for descriptor in outputs:
                os.close(descriptor)


def _fork(orders: socket.socket, outputs: Sequence[int], name: str, run: Callable[[], int]) -> None:
    """Fork twice. The intermediate process ends at once, so that its child is adopted by the
    nearest ancestor that adopts orphans: the sender of the order."""
    intermediate = os.fork()
    if intermediate:
        _, status = os.waitpid(intermediate, 0)
        if status:
            raise ProcessFailedError(f"{name} could not be forked; expected room for a process")
        return
    code = 1
    try:
        intermediate = os.getpid()
        if os.fork():
            code = 0
        else:
            _set_up(orders, outputs, name, intermediate)
            code = run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # the top of a process
        traceback.print_exc()
    finally:
        # The interpreter's own shutdown would write to all shared memory, and so copy it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set_up(orders: socket.socket, outputs: Sequence[int], name: str, intermediate: int) -> None:
    """Set the process group and the outputs of the new process; announce it once adopted."""
    os.setpgid(0, 0)
    for target, descriptor in enumerate(outputs, 1):
        os.dup2(descriptor, target)
        os.close(descriptor)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)  # the name that ps and top show
    while os.getppid() == intermediate:
        time.sleep(ADOPTION_POLL_S)
    orders.send(str(os.getpid()).encode())  # BrokenPipeError if the gateway has given up
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), orders.fileno())
    orders.detach()
