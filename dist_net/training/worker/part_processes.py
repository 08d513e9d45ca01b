"""Processes of one host that take the local steps of a lease together, each a part of it.

They are forked with the recipe and the data in memory. Weights and differences are in memory that
they share with the worker; orders and results are short messages on Unix sockets.
"""

import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

import numpy as np

from dist_net.processes.entry import terminate_after
from dist_net.training.worker.local_steps import LeaseSteps, LocalSteps
from dist_net.vector import Vector
from dist_net.wire.messages import Welcome
from dist_net.wire.segment import Segment

MAX_ORDER_BYTES = 1 << 16
POLL_S = 0.2

LocalStepsOf = Callable[[int, str, float, int], LocalSteps]
"""Return the local steps for a seed, an optimizer's text, a clip norm (0: none), a batch size."""


class PartProcesses:
    """``count`` processes that take local steps as ``LocalSteps`` does, several parts at a time.

    The results are the same, bit for bit. Create this object before the process has threads or
    sockets, which forked processes would share. The processes end with the context, or with their
    parent. Raise ``SegmentError`` without shared memory.
    """

    def __init__(self, count: int, vector_size: int, local_of: LocalStepsOf) -> None:
        self._shared = Segment.create(count + 1, vector_size)
        self._base, *self._differences = map(self._shared.vector, range(count + 1))
        self._run: tuple[int, str, float, int] = 0, "", 0.0, 1
        self.loss_sum, self.correct = 0.0, 0
        self.process_ids: list[int] = []
        self._channels: list[socket.socket] = []
        for difference in self._differences:
            own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            parent = os.getpid()
            if process_id := os.fork():
                other.close()
                self.process_ids.append(process_id)
                self._channels.append(own)
                continue
            try:
                own.close()
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
                terminate_after(parent)
                _serve(other, self._base, difference, local_of)
            except BaseException:  # the top of a process
                traceback.print_exc()
            finally:  # not the interpreter's shutdown, which belongs to the parent
                os._exit(1)

    def __len__(self) -> int:
        return len(self._channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process_id, channel in zip(self.process_ids, self._channels, strict=True):
            channel.close()
            os.kill(process_id, signal.SIGKILL)
            os.waitpid(process_id, 0)
        self._differences.clear()
        self._shared.close()

    def begin(self, welcome: Welcome) -> None:
        """Take the steps of the run of ``welcome`` from now on."""
        self._run = welcome.seed, welcome.optimizer, welcome.clip_norm, welcome.batch_size

    def take(self, base: Vector, lease: LeaseSteps, out: Vector) -> Iterator[None]:
        """Take the steps of ``lease`` as ``LocalSteps.take``; yield several times a second.

        Raise ``ChildProcessError`` if a process has ended: then this one must end too, and with it
        the lease.
        """
        np.copyto(self._base, base)
        self.loss_sum, self.correct = 0.0, 0
        parts = lease.split(self._run[-1])
        for first in range(0, len(parts), len(self)):  # more only in a lease of another host
            taken = list(zip(self._channels, parts[first : first + len(self)], strict=False))
            for channel, part in taken:
                with suppress(ConnectionError):  # ``_receive`` notices too
                    channel.send(json.dumps([self._run, part]).encode())
            for channel, _ in taken:
                while not select.select([channel], [], [], POLL_S)[0]:
                    yield
                self._receive(channel)
            for number, difference in enumerate(self._differences[: len(taken)], first):
                if number:
                    out += difference
                else:
                    np.copyto(out, difference)
        if lease.parts > 1:
            out *= np.float32(1 / lease.parts)

    def _receive(self, channel: socket.socket) -> None:
        """Add a part's loss and correct predictions."""
        result = b""
        with suppress(ConnectionError):
            result = channel.recv(MAX_ORDER_BYTES)
        if not result:
            number = self._channels.index(channel)
            raise ChildProcessError(
                f"process {self.process_ids[number]}, which took local steps for this worker, has "
                f"ended: the worker ends too, and its lease is computed again"
            )
        loss_sum, correct = json.loads(result)
        self.loss_sum += loss_sum
        self.correct += correct


def _serve(
    channel: socket.socket, base: Vector, difference: Vector, local_of: LocalStepsOf
) -> None:
    """Take the steps of each part that arrives, until the other end is closed."""
    run, local = None, None
    while order := channel.recv(MAX_ORDER_BYTES):
        requested, part = json.loads(order)
        if local is None or requested != run:
            run, local = requested, local_of(*requested)
        for _ in local.take(base, LeaseSteps(*part), difference):
            pass
        channel.send(json.dumps([local.loss_sum, local.correct]).encode())
