"""Processes of one host that take the local steps of a lease together, each a part of it.

They are forked with the recipe and the data in memory. States are in memory that they share with
the worker; orders and results are short messages in pipes.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from select import select

import numpy as np

from dist_net.processes.entry import terminate_after
from dist_net.training.worker.local_steps import LocalSteps, LocalStepsOf, Minibatch
from dist_net.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings
from dist_net.wire.segment import Segment, available

logger = logging.getLogger(__name__)

POLL_S = 0.2


def fork_hazard() -> str | None:
    """Return why this process cannot be forked safely; None if it can.

    In a forked process, nobody releases the locks that other threads hold. Daemons, such as the
    threads of a notebook's kernel, hold none that a local step needs.
    """
    if not available() or current_process().daemon:
        return "this system, or multiprocessing's pool, forks no processes that share memory"
    threads = {each.name for each in threading.enumerate() if not each.daemon}
    others = ", ".join(threads - {threading.current_thread().name})
    return f"other threads run ({others:.80})" if others else None


class PartProcesses(LocalSteps):
    """``count`` processes that take local steps as ``LocalSteps`` does, several parts at a time.

    The results are the same, bit for bit. Create this object before the process has threads or
    sockets, which forked processes would share; at that time, the size of a state is unknown, and
    ``max_state_size`` limits it. The processes end with ``close``, or with their parent. Raise
    ``SegmentError`` without shared memory, and ``OSError`` if a process cannot start.

    With ``sharing``, which returns the local steps of a process by its number, all processes
    take the same steps: they share the work of each.
    """

    def __init__(
        self,
        count: int,
        max_state_size: int,
        local_of: LocalStepsOf,
        sharing: Callable[[int, StepSettings], LocalSteps] | None = None,
    ) -> None:
        # Memory is allocated only where it is written.
        self._shared = Segment.create(count + 1, max_state_size)
        self._base, *self._results = map(self._shared.vector, range(count + 1))
        self._local_of, self._is_shared = local_of, sharing is not None
        self._settings: StepSettings | None = None
        self.due, self.rate_factor = (np.empty(0, np.float32), Minibatch(0, 0, 0)), 1.0
        self._channels: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self.process_ids: list[int] = []
        fork, parent = get_context("fork"), os.getpid()
        try:
            for number, result in enumerate(self._results):
                own, other = fork.Pipe()
                self._channels.append(own)
                with other:
                    own_of = partial(sharing, number) if sharing else local_of
                    serving = other, self._base, result, own_of, parent
                    process = fork.Process(target=_serve, args=serving, daemon=True)
                    process.start()
                self._processes.append(process)
                self.process_ids.append(process.pid or 0)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._channels)

    def close(self) -> None:
        """End the processes."""
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._processes, self._results, self._base = [], [], np.empty(0, np.float32)
        self._shared.close()

    def steps_of(self, settings: StepSettings) -> LocalSteps:
        """Return this object, which takes the steps of a run with these settings from now on."""
        self.rule, self._settings = self._local_of(settings).rule, settings
        return self

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take a lease; yield several times a second. Raise ChildProcessError if a process ends."""
        assert self._settings is not None
        np.copyto(self._base[: base.size], base)
        self.loss_sum, self.correct = 0.0, 0
        parts = [lease] * len(self) if self._is_shared else lease.split()
        mean: Vector | None = None
        for first in range(0, len(parts), len(self)):  # more only in a lease of another host
            taken = dict(zip(self._channels, parts[first : first + len(self)], strict=False))
            for channel, part in taken.items():
                with suppress(ConnectionError):  # ``_receive`` notices too
                    order = self._settings, part, self.rate_factor
                    channel.send_bytes(json.dumps(order).encode())
            waiting, sums = {*taken}, {}
            while waiting:
                # A process that is idle reports only its end.
                for channel in select(self._channels, [], [], POLL_S)[0]:
                    sums[channel] = self._receive(channel)
                    waiting.discard(channel)
                yield
            for channel, result in zip([*taken][: lease.parts], self._results, strict=False):
                loss_sum, correct, self.learning_rate = sums[channel]
                self.loss_sum += loss_sum
                self.correct += correct
                own = result[: base.size]
                mean = own.copy() if mean is None else np.add(mean, own, out=mean)
        assert mean is not None
        mean *= np.float32(1 / lease.parts)
        self.state = mean

    def _receive(self, channel: Connection) -> tuple[float, int, float]:
        """Return a part's loss, correct predictions and last learning rate."""
        try:
            loss_sum, correct, learning_rate = json.loads(channel.recv_bytes())
        except (EOFError, ConnectionError):
            number = self._channels.index(channel)
            raise ChildProcessError(
                f"process {self.process_ids[number]}, which took local steps, has ended; its lease "
                f"is computed again"
            ) from None
        return loss_sum, correct, learning_rate


def _serve(
    channel: Connection, base: Vector, result: Vector, local_of: LocalStepsOf, parent: int
) -> None:
    """Take the steps of each part that arrives, until this process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler
    terminate_after(parent)
    settings, local = None, None
    try:
        while True:
            requested, part, rate_factor = json.loads(channel.recv_bytes())
            if local is None or requested != settings:
                settings, local = requested, local_of(StepSettings(*requested))
            local.rate_factor = rate_factor
            size = local.rule.state_size
            for _ in local.take(base[:size], LeaseSteps(*part)):
                pass
            np.copyto(result[:size], local.state)
            sums = local.loss_sum, local.correct, local.learning_rate
            channel.send_bytes(json.dumps(sums).encode())
    except Exception as error:  # the top of a process; taken again, the steps raise it
        logger.info("part_failed error=%r", error, exc_info=True)
        raise SystemExit(1) from error
