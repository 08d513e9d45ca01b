"""The process that others are forked from, so that they share the memory of what it has imported.

Orders come on a Unix socket, one at a time. Each becomes a process that is a child of the process
that gave the order, not of this one, and goes on if this one ends. The new process announces itself
on the same socket; if nobody listens there any more, it ends.

A process that forks must have no threads, open sockets or ZeroMQ context: they would be lost, or
shared. BLAS ends its threads before a fork, and starts them again when they are needed.
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
LARGEST_ORDER = 1 << 16
ADOPTION_POLL_S = 0.0005


def fork_on_orders(orders: socket.socket, run: Callable[[Sequence[str]], int]) -> None:
    """Forks a process for each order, until the other end is closed.

    An order is a name and arguments as JSON, and the descriptors for stdout and stderr. The new
    process calls ``run`` with the arguments, for its exit code. Raises ProcessFailedError and
    OSError when no more can be forked.
    """
    # What is here stays. A garbage collection would write to every page of it, and so copy it.
    gc.collect()
    gc.freeze()
    with suppress(ConnectionError):  # the other end is closed already
        orders.send(READY_TO_FORK)
    while (received := _received(orders)) is not None:
        order, outputs = received
        name, *arguments = json.loads(order)
        _fork(orders, outputs, name, partial(run, arguments))
        for each in outputs:
            os.close(each)


def _received(orders: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next order and its descriptors; None if the other end is closed."""
    try:
        order, outputs, _, _ = socket.recv_fds(orders, LARGEST_ORDER, 2)
    except ConnectionError:
        return None
    return (order, outputs) if order else None


def _fork(orders: socket.socket, outputs: Sequence[int], name: str, run: Callable[[], int]) -> None:
    """Forks twice. The process in between ends at once, so that the system gives its child to the
    nearest ancestor that adopts orphans: the one that gave the order."""
    between = os.fork()
    if between:
        _, status = os.waitpid(between, 0)
        if status:
            raise ProcessFailedError(f"{name} could not be forked; expected room for a process")
        return
    code = 1
    try:
        between = os.getpid()
        if os.fork():
            code = 0
        else:
            _be_born(orders, outputs, name, between)
            code = run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # the top of a process
        traceback.print_exc()
    finally:
        # The usual end of an interpreter would write to, and so copy, all memory that is shared.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_born(orders: socket.socket, outputs: Sequence[int], name: str, between: int) -> None:
    """In the new process: takes its own process group and outputs, and announces itself once it is
    adopted."""
    os.setpgid(0, 0)
    for target, own in enumerate(outputs, 1):
        os.dup2(own, target)
        os.close(own)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)  # for people, who see it in ps and top
    while os.getppid() == between:
        time.sleep(ADOPTION_POLL_S)
    orders.send(str(os.getpid()).encode())  # BrokenPipeError: nobody needs it any more
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), orders.fileno())
    orders.detach()
