"""Processes of one host that take the local steps of a lease together, each a part of it.

They are forked with the recipe and the data in memory. States are in memory that they share with
the worker; orders and results are short messages in pipes. They share no position in a file and no
connection, see ``open_own_files``, and read the same samples as the process that forked them.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from select import select
from typing import NamedTuple

import numpy as np

from dist_net.errors import DatasetError
from dist_net.ground.vector import Vector
from dist_net.processes.entry import terminate_after
from dist_net.training.worker.local_steps import LocalSteps, LocalStepsOf, Minibatch
from dist_net.wire.lateness import Standstill, late_after_s
from dist_net.wire.lease_steps import LeaseSteps, minibatches_in
from dist_net.wire.messages import StepSettings
from dist_net.wire.segment import Segment, available

logger = logging.getLogger(__name__)

POLL_S = 0.2
AWAY_S = 60.0
STARTS_WITHIN_S = 10.0
REMEDY = (
    "expected samples that depend on their indices alone, and connections that each process opens: "
    "in read(), when os.getpid() has changed. Or train with one worker"
)


def fork_hazard() -> str | None:
    """Return why this process cannot be forked safely; None if it can.

    In a forked process, the locks that other threads hold are never released. Daemons, such as the
    threads of a notebook's kernel, hold none that a local step needs.
    """
    if not available() or current_process().daemon:
        return "this system, or multiprocessing's pool, forks no processes that share memory"
    threads = {each.name for each in threading.enumerate() if not each.daemon}
    others = ", ".join(threads - {threading.current_thread().name})
    return f"other threads run ({others:.80})" if others else None


def open_own_files(channel: int) -> None:
    """Open a forked process's files again, at their places, and close its parent's connections.

    It shares the places with its parent: after another process's seek, a read returns other bytes.
    On a connection, it may receive what another process requested. The ``channel``, the standard
    streams and files that are only written stay as they are. A file that cannot be opened again is
    closed.
    """
    closed, other = socket.socketpair()
    other.close()  # a client notices that its connection has ended
    descriptors = {int(each.name) for each in Path("/proc/self/fd").iterdir()}
    for descriptor in descriptors - {0, 1, 2, channel, closed.fileno()}:
        own = closed.fileno()
        try:
            mode, flags = os.fstat(descriptor).st_mode, fcntl.fcntl(descriptor, fcntl.F_GETFL)
        except OSError:  # it listed the descriptors
            continue
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            if flags & os.O_ACCMODE == os.O_WRONLY:
                continue
            with suppress(OSError):
                own = os.open(f"/proc/self/fd/{descriptor}", flags & (os.O_ACCMODE | os.O_APPEND))
                os.lseek(own, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
        elif not (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)):
            continue
        os.dup2(own, descriptor, os.get_inheritable(descriptor))
        if own != closed.fileno():
            os.close(own)
    closed.close()


class TakenPart(NamedTuple):
    """The result of a process, besides the state; ``digest`` is of the samples of one minibatch."""

    loss_sum: float = 0.0
    correct: int = 0
    learning_rate: float = 0.0
    digest: str = ""


class PartProcesses(LocalSteps):
    """``count`` processes that take local steps as ``LocalSteps`` does, several parts at a time.

    The results are the same, bit for bit. This process also takes a lease that is late, and the
    next ones until all processes are back. If one ends, or stays away for ``AWAY_S``, all are
    ended, and ``lost`` is the reason.

    Create this object before the process has threads or sockets; at that time, the size of a state
    is unknown, and ``max_state_size`` limits it. The processes end with ``close``, or with their
    parent. Raise ``SegmentError`` without shared memory, and ``OSError`` if a process cannot start.

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
        # The system allocates memory only for pages that are written.
        self._shared = Segment.create(count + 1, max_state_size)
        self._base, *self._results = map(self._shared.vector, range(count + 1))
        self._local_of, self._is_shared = local_of, sharing is not None
        self._settings: StepSettings | None = None
        self.due, self.rate_factor = (np.empty(0, np.float32), Minibatch(0, 0, 0)), 1.0
        self.lost = self._failure = ""
        self._orders, self._step_s = 0, 0.0
        self._stops, self._away_since_s, self._has_computed = Standstill(), 0.0, False
        self._computing: set[Connection] = set()
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
            for channel in self._channels:  # before, this process must not move in a file
                if not channel.poll(STARTS_WITHIN_S):
                    raise TimeoutError(f"a forked process is not ready in {STARTS_WITHIN_S:.0f} s")
                self._receive(channel)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
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
        self._own, self._settings = self._local_of(settings), settings
        self.rule = self._own.rule
        return self

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take a lease; yield several times a second.

        Raise ChildProcessError if the processes were lost before, and DatasetError if they cannot
        read the samples that this process reads.
        """
        if self.lost:
            raise ChildProcessError(self.lost)
        self._own.rate_factor = self.rate_factor
        own = self._own.take(base, lease)  # begins when it is needed
        try:
            self._collect(0.0)
            if not self._computing:
                if (yield from self._take_in_processes(base, lease, own)):
                    return
                self._away_since_s = time.monotonic()
            elif time.monotonic() > self._away_since_s + AWAY_S:
                raise ChildProcessError(f"a forked process had no result within {AWAY_S:.0f} s")
        except ChildProcessError as error:
            self.lost = str(error)
            self.close()
        yield from own
        if self._failure and not self._has_computed:  # no accident
            raise DatasetError(f"{self.lost}, and its parent has not; {REMEDY}")
        self.state, self.learning_rate = self._own.state, self._own.learning_rate
        self.loss_sum, self.correct = self._own.loss_sum, self._own.correct

    def _take_in_processes(
        self, base: Vector, lease: LeaseSteps, own: Iterator[None]
    ) -> Generator[None, None, bool]:
        """Take a lease, by ``own`` too once it is late; return False if that is done first."""
        steps = minibatches_in(lease.samples, lease.batch_size)
        began_s, late_s = self._running_s(), late_after_s(self._step_s * steps)
        np.copyto(self._base[: base.size], base)
        self.loss_sum, self.correct = 0.0, 0
        parts = [lease] * len(self._channels) if self._is_shared else lease.split()
        mean: Vector | None = None
        for first in range(0, len(parts), len(self._channels)):  # more only of a larger host
            taken = dict(zip(self._channels, parts[first:], strict=False))
            compared = self._order(taken)
            digests = {each: self._own.digest_of(of) for each, of in compared.items()}
            results: dict[Connection, TakenPart] = {}
            while self._computing:
                is_late = self._running_s() > began_s + late_s
                results |= self._collect(0.0 if is_late else POLL_S)
                yield
                if is_late and next(own, self) is self:
                    self._step_s = late_s / steps  # at least
                    return False
            if any(results[each].digest != digest for each, digest in digests.items()):
                raise DatasetError(f"forked processes read other samples; {REMEDY}")
            for channel, result in zip([*taken][: lease.parts], self._results, strict=False):
                self.loss_sum += results[channel].loss_sum
                self.correct += results[channel].correct
                self.learning_rate = results[channel].learning_rate
                of_part = result[: base.size]
                mean = of_part.copy() if mean is None else np.add(mean, of_part, out=mean)
        assert mean is not None
        mean *= np.float32(1 / lease.parts)
        self.state, self._step_s = mean, (self._running_s() - began_s) / steps
        self._has_computed = True
        return True

    def _running_s(self) -> float:
        return self._stops.running_s(time.monotonic())

    def _order(self, taken: Mapping[Connection, LeaseSteps]) -> dict[Connection, Minibatch]:
        """Order parts; return the minibatches of which the results will have digests.

        There are some in the first order, in the second, in the fourth, and so on.
        """
        self._orders += 1
        self._computing = {*taken}
        compared: dict[Connection, Minibatch] = {}
        for number, (channel, part) in enumerate(taken.items()):
            if self._orders & (self._orders - 1) == 0:
                minibatches = [*pairwise(part.edges)]
                compared[channel] = Minibatch(part.epoch, *minibatches[number % len(minibatches)])
            with suppress(ConnectionError):  # ``_receive`` notices too
                order = self._settings, part, self.rate_factor, compared.get(channel)
                channel.send_bytes(json.dumps(order).encode())
        return compared

    def _collect(self, timeout_s: float) -> dict[Connection, TakenPart]:
        """Wait for a result, and return those that have arrived; an idle process sends its end."""
        arrived = select(self._channels, [], [], timeout_s)[0]
        self._computing.difference_update(arrived)
        return {channel: self._receive(channel) for channel in arrived}

    def _receive(self, channel: Connection) -> TakenPart:
        """Return the result of a process; raise ChildProcessError if it has ended, or failed."""
        process = self._processes[self._channels.index(channel)]
        who = f"process {process.pid}, which took local steps,"
        try:
            result = json.loads(channel.recv_bytes())
        except (EOFError, ConnectionError):
            process.kill()  # if it has only closed the channel
            process.join()
            raise ChildProcessError(f"{who} has ended with code {process.exitcode}") from None
        if isinstance(result, str):
            self._failure = result
            raise ChildProcessError(f"{who} has failed: {result}")
        return TakenPart(*result)


def _serve(
    channel: Connection, base: Vector, result: Vector, local_of: LocalStepsOf, parent: int
) -> None:
    """Take the steps of each part that arrives, until this process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler
    terminate_after(parent)
    settings, local = None, None
    try:
        open_own_files(channel.fileno())
        channel.send_bytes(json.dumps(TakenPart()).encode())  # it is ready
        while True:
            requested, part, rate_factor, compared = json.loads(channel.recv_bytes())
            if local is None or requested != settings:
                settings, local = requested, local_of(StepSettings(*requested))
            digest = local.digest_of(Minibatch(*compared)) if compared else ""
            local.rate_factor = rate_factor
            size = local.rule.state_size
            for _ in local.take(base[:size], LeaseSteps(*part)):
                pass
            np.copyto(result[:size], local.state)
            taken = TakenPart(local.loss_sum, local.correct, local.learning_rate, digest)
            channel.send_bytes(json.dumps(taken).encode())
    except Exception as error:  # the top of a process; taken again, the steps raise it
        logger.info("part_failed error=%r", error, exc_info=True)
        with suppress(OSError):
            channel.send_bytes(json.dumps(repr(error)[:200]).encode())
        raise SystemExit(1) from error
