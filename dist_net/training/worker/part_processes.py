"""Processes of one host that take the local steps of a lease together, each a part of it.

They are forked with the recipe and the data in memory. States are in memory that they share with
the worker; orders and results are short messages in pipes.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from select import select

import numpy as np

from dist_net.processes.entry import terminate_after
from dist_net.training.worker.local_steps import LocalStepsOf
from dist_net.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings
from dist_net.wire.segment import Segment

POLL_S = 0.2


class PartProcesses(AbstractContextManager["PartProcesses"]):
    """``count`` processes that take local steps as ``LocalSteps`` does, several parts at a time.

    The results are the same, bit for bit. Create this object before the process has threads or
    sockets, which forked processes would share; at that time, the size of a state is unknown, and
    ``max_state_size`` limits it. The processes end with the context, or with their parent. Raise
    ``SegmentError`` without shared memory.
    """

    def __init__(self, count: int, max_state_size: int, local_of: LocalStepsOf) -> None:
        # Memory is allocated only where it is written.
        self._shared = Segment.create(count + 1, max_state_size)
        self._base, *self._results = map(self._shared.vector, range(count + 1))
        self._settings: StepSettings | None = None
        self.state = self._base
        self.loss_sum, self.correct = 0.0, 0
        self._channels: list[Connection] = []
        self._processes: list[BaseProcess] = []
        fork, parent = get_context("fork"), os.getpid()
        for result in self._results:
            own, other = fork.Pipe()
            serving = other, self._base, result, local_of, parent
            self._processes.append(fork.Process(target=_serve, args=serving, daemon=True))
            self._processes[-1].start()
            self._channels.append(own)
            other.close()

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def process_ids(self) -> list[int]:
        return [each.pid for each in self._processes if each.pid is not None]

    def __exit__(self, *_: object) -> None:
        for process, channel in zip(self._processes, self._channels, strict=True):
            channel.close()
            process.kill()
            process.join()
        self._results.clear()
        self._shared.close()

    def begin(self, settings: StepSettings) -> None:
        """Take the steps of a run with these settings from now on."""
        self._settings = settings

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of ``lease`` as ``LocalSteps.take``; yield several times a second.

        Raise ``ChildProcessError`` as soon as a process has ended: then this one must end too, and
        with it the lease.
        """
        assert self._settings is not None
        np.copyto(self._base[: base.size], base)
        self.loss_sum, self.correct = 0.0, 0
        parts = lease.split()
        mean: Vector | None = None
        for first in range(0, len(parts), len(self)):  # more only in a lease of another host
            taken = dict(zip(self._channels, parts[first : first + len(self)], strict=False))
            for channel, part in taken.items():
                with suppress(ConnectionError):  # ``_receive`` notices too
                    channel.send_bytes(json.dumps([self._settings, part]).encode())
            waiting, sums = {*taken}, {}
            while waiting:
                # A process that is idle reports only its end.
                for channel in select(self._channels, [], [], POLL_S)[0]:
                    sums[channel] = self._receive(channel)
                    waiting.discard(channel)
                yield
            for channel, result in zip(taken, self._results, strict=False):
                loss_sum, correct = sums[channel]
                self.loss_sum += loss_sum
                self.correct += correct
                own = result[: base.size]
                mean = own.copy() if mean is None else np.add(mean, own, out=mean)
        assert mean is not None
        mean *= np.float32(1 / lease.parts)
        self.state = mean

    def _receive(self, channel: Connection) -> tuple[float, int]:
        """Return a part's loss and correct predictions."""
        try:
            loss_sum, correct = json.loads(channel.recv_bytes())
        except (EOFError, ConnectionError):
            number = self._channels.index(channel)
            raise ChildProcessError(
                f"process {self.process_ids[number]}, which took local steps for this worker, has "
                f"ended: the worker ends too, and its lease is computed again"
            ) from None
        return loss_sum, correct


def _serve(
    channel: Connection, base: Vector, result: Vector, local_of: LocalStepsOf, parent: int
) -> None:
    """Take the steps of each part that arrives, until this process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    terminate_after(parent)
    settings, local = None, None
    while True:
        requested, part = json.loads(channel.recv_bytes())
        if local is None or requested != settings:
            settings, local = requested, local_of(StepSettings(*requested))
        size = local.rule.state_size
        for _ in local.take(base[:size], LeaseSteps(*part)):
            pass
        np.copyto(result[:size], local.state)
        channel.send_bytes(json.dumps([local.loss_sum, local.correct]).encode())
