"""Fork processes that share the memory of the modules that the fork server has imported.

Orders arrive on a Unix socket, one at a time. A forked process becomes a child of the process that
sent the order, and keeps running if the fork server ends. It announces itself on the same socket,
and ends if the other end is closed.

The fork server must have no threads, open sockets or ZeroMQ context: the forked process would lose
or share them. BLAS ends its threads before a fork, and starts them again on demand.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from dist_net.errors import ProcessFailedError

READY_TO_FORK = b"ready"
HEARTBEAT = b"[]"
"""An order that forks no process; the fork server responds with ``READY_TO_FORK``."""
MAX_ORDER_BYTES = 1 << 16
ADOPTION_POLL_S = 0.0005


def fork_on_orders(orders: socket.socket, run: Callable[[Sequence[str]], int]) -> None:
    """Fork a process for each order, until the other end of ``orders`` is closed.

    An order is a name and arguments as a JSON list, with the descriptors for stdout and stderr. The
    new process calls ``run`` with the arguments, and exits with the code that it returns. Raise
    ProcessFailedError or OSError if no process can be forked.
    """
    # A garbage collection in a forked process would write to every shared page, and so copy it.
    gc.collect()
    gc.freeze()
    with suppress(ConnectionError):  # the other end was closed before it read all messages
        orders.send(READY_TO_FORK)
        while (received := socket.recv_fds(orders, MAX_ORDER_BYTES, 2))[0]:
            order, outputs, _, _ = received
            if order == HEARTBEAT:
                orders.send(READY_TO_FORK)
                continue
            name, *arguments = json.loads(order)
            _fork(orders, outputs, name, partial(run, arguments))
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
    """Give the new process its own process group and outputs, and announce it once adopted."""
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
