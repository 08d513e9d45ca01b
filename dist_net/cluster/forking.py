"""The process that others are forked from: what it has imported, they have without paying for it.

Orders come on a Unix socket, one at a time, and each becomes a process that is a child of whoever
gave the order, and not of this one: whether this one lives is nothing to it. It says itself that
it is born, on the same socket; if nobody hears that any more, it ends.

Not for a process that has threads, open sockets or a context of ZeroMQ: they would not survive, or
be shared. BLAS ends its threads before a fork, and begins them again when they are needed.
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

Run = Callable[[Sequence[str]], int]
"""What a forked process does with its arguments; gives its exit code."""


def fork_on_orders(orders: socket.socket, run: Run) -> None:
    """Forks a process for each order, until the other end is closed.

    An order is the name and the arguments as JSON, and the descriptors for its stdout and stderr.
    Raises ProcessFailedError and OSError when no more can be forked.
    """
    # What is here stays, and a collection that looked through it would write to every page of it.
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
    """The next order, and its descriptors; None: there will be none."""
    try:
        order, outputs, _, _ = socket.recv_fds(orders, LARGEST_ORDER, 2)
    except ConnectionError:
        return None
    return (order, outputs) if order else None


def _fork(orders: socket.socket, outputs: Sequence[int], name: str, run: Callable[[], int]) -> None:
    """Forks twice. The process between the two ends at once, so that the system gives its child to
    the next ancestor that takes orphans: to who gave the order."""
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
        # An interpreter's usual end would touch, and so copy, all that is shared.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_born(orders: socket.socket, outputs: Sequence[int], name: str, between: int) -> None:
    """In a process group and with outputs of its own, says who it is once it is adopted."""
    os.setpgid(0, 0)
    for target, own in enumerate(outputs, 1):
        os.dup2(own, target)
        os.close(own)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)  # for people, who see it in ps and top
    while os.getppid() == between:
        time.sleep(ADOPTION_POLL_S)
    orders.send(str(os.getpid()).encode())  # BrokenPipeError: nobody wants it any more
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), orders.fileno())
    orders.detach()
