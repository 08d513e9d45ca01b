"""The processes that the gateway starts, on its host or Ray's nodes: workers and model readers.

The supervisor is polled on the gateway's event loop, and at once when a process of this host ends.
"""

import asyncio
import logging
import math
import os
import secrets
import signal
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgpack

from dist_net.errors import BadInputError, DistNetError, ProcessFailedError, ProtocolError
from dist_net.ground.clock import Clock, SystemClock
from dist_net.ground.files import read_regular_file
from dist_net.ground.printable import printable
from dist_net.processes.entry import process_state
from dist_net.processes.fork_server import ForkingProcesses
from dist_net.processes.launcher import LocalProcesses, ProcessSpec, RunningChild
from dist_net.processes.ray_cluster import RayCluster
from dist_net.processes.supervisor import Supervisor
from dist_net.serving import model_reading
from dist_net.serving.model_reading import MAX_COMPUTING_S, READ_OPTION, UNREQUESTED, answer_file
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import ReadModel, RemoveArrays
from dist_net.wire.codec import decode
from dist_net.wire.serving_messages import ModelPrepared

logger = logging.getLogger(__name__)

POLL_S = 0.05
MAX_READ_S = 300.0  # then the process that reads is killed, and the reload fails
MAX_ANSWER_BYTES = 64 << 20

FORK_SERVER = "dist_net.serving.gateway.fork_server_process"
JOINS_WITHIN_S = 120.0
"""A process that is no member of the pool for this long hangs: before it joins, or afterwards."""
MAX_EARLY_ENDS = 3
"""The pool fails to start if a process ends this often before the pool is ready."""


class PoolSources(NamedTuple):
    """``words``: arguments by model; ``followed``: in training; ``directory``: for answers."""

    words: dict[str, Sequence[str]]
    followed: Container[str]
    directory: Path


@dataclass(slots=True)
class _Reading:
    """A process that reads a model for request ``version``, which it must answer by ``until_s``."""

    child: RunningChild
    version: int
    until_s: float


class ModelReaders:
    """Reads models, each by one process of ``start`` at a time, and follows training runs.

    ReadModel ─▶ a process reads within limits ─▶ a file with its answer ─▶ ModelPrepared

    A file that hangs, crashes or computes forever delays no other model, and its own repair
    neither. A process may be under the control of the file that it reads.
    """

    def __init__(
        self, start: Callable[[ProcessSpec], RunningChild], sources: PoolSources, clock: Clock
    ) -> None:
        self._start = start
        self._words, self._followed, self._directory = sources
        self._clock = clock
        self._readings: dict[str, _Reading] = {}
        self._requested: dict[str, int] = {}  # versions that no process reads yet
        self._files: dict[str, dict[int, Path]] = defaultdict(dict)  # by model and version

    def execute(self, command: ReadModel | RemoveArrays) -> None:
        """Have ``poll`` read a model, or remove a version's file, unless another has it too."""
        if isinstance(command, ReadModel):
            self._requested[command.model] = command.version
            return
        files = self._files[command.model]
        path = files.pop(command.version, None)
        if path is not None and path.parent == self._directory and path not in files.values():
            path.unlink(missing_ok=True)

    def poll(self, report: Callable[[ModelPrepared], None]) -> float:
        """Start and end processes and ``report`` what they read; return the seconds to wait."""
        now = self._clock.now()
        for model in self._words:
            if (reading := self._readings.get(model)) is not None:
                self._advance(model, reading, now, report)
            if model in self._requested and model not in self._readings:
                version = self._requested.pop(model)
                answer_file(self._directory, model).unlink(missing_ok=True)  # of an ended process
                words = READ_OPTION, str(version), *self._words[model]
                until_s = math.inf if version == UNREQUESTED else now + MAX_READ_S
                child = self._start(ProcessSpec(f"reader-{model}", model_reading.__name__, words))
                self._readings[model] = _Reading(child, version, until_s)
        return POLL_S if self._readings else math.inf

    def close(self) -> None:
        for reading in self._readings.values():
            reading.child.kill()

    def _advance(
        self, model: str, reading: _Reading, now: float, report: Callable[[ModelPrepared], None]
    ) -> None:
        """Report what the process of a model has read; kill one that is late or replaced."""
        child, code = reading.child, reading.child.exit_code  # before its last answer is read
        if child.process_id < 0 and reading.until_s < math.inf:  # it was not forked yet
            reading.until_s = now + MAX_READ_S
        reason = ""
        try:
            if (prepared := self._answer(model)) is not None:
                if prepared.requested == reading.version:
                    reading.until_s = math.inf
                report(prepared)
        except ProtocolError as error:
            reason = str(error)
        if code is not None:
            reason = child.last_words if code >= 0 else _killed(signal.Signals(-code).name)
        elif now > reading.until_s:
            reason = _killed(f"it took longer than {MAX_READ_S:g} s")
        if reason and reading.until_s < math.inf and model not in self._requested:
            reading.until_s = math.inf
            logger.warning("not_prepared model=%s reason=%s", model, reason)
            version, is_bad_input = reading.version, code == BadInputError.exit_code
            report(ModelPrepared(model, version, "", reason, version, is_bad_input))
        if code is not None:
            for partial in self._directory.glob(f"*.{child.process_id}.partial"):
                partial.unlink(missing_ok=True)
            del self._readings[model]
            if model in self._followed:
                self._requested.setdefault(model, UNREQUESTED)
        elif (reason or model in self._requested) and child.process_id > 0:  # it was forked
            child.kill_soon()

    def _answer(self, model: str) -> ModelPrepared | None:
        """Return the next answer of a model's process, or None. Raise ProtocolError."""
        file = answer_file(self._directory, model)
        try:
            frames = msgpack.unpackb(read_regular_file(file, MAX_ANSWER_BYTES))
        except OSError:  # no file, or no free descriptor
            return None
        except (ValueError, msgpack.UnpackException) as error:
            raise ProtocolError(f"{error}; expected frames of a message") from error
        file.unlink(missing_ok=True)  # its process waits for this before it writes another
        is_message = isinstance(frames, list) and all(isinstance(each, bytes) for each in frames)
        prepared = decode(frames) if is_message else None
        if not isinstance(prepared, ModelPrepared) or prepared.model != model:
            raise ProtocolError(f"its answer is {prepared!r:.80}; expected a version of {model}")
        if prepared.description:
            path = Path(ModelDescription.from_json(prepared.description).arrays_path)
            if not os.path.exists(path):  # noqa: PTH110 - any path; a version with the same arrays was removed meanwhile
                self._requested.setdefault(model, prepared.requested)
                return None
            self._files[model][prepared.version] = path
        return prepared


class PoolProcesses:
    """Keep this host's fork server and a worker for each of ``specs`` running; read models.

    Each is restarted however often it ends, and killed if it does not join the pool. Each start of
    a worker has a credential, by which the pool knows this process, whatever its messages claim.
    ``is_begun``: the pool has been ready; before, an end that would repeat makes
    ``require_startable`` raise.
    """

    def __init__(self, specs: Sequence[ProcessSpec], sources: PoolSources, logs: Path) -> None:
        self._local = ForkingProcesses(FORK_SERVER, logs)
        self._workers = specs
        self._readers = ModelReaders(self._local.start, sources, SystemClock())
        self._here = Supervisor(self._local, math.inf, _notify, may_restart=self._may_restart)
        self._supervisors = [self._here]
        self._start_on_ray: Callable[[], None] = lambda: None
        self._teachers: Sequence[ProcessSpec] = ()
        self._ends: Counter[str] = Counter()
        self._failure: DistNetError | None = None
        self._wake = asyncio.Event()
        self._credentials: dict[str, str] = {}  # of the newest process, by name
        self._member_s: dict[str, float] = {}  # when each started, or was a member last
        self.is_begun = False

    def add_ray(
        self, ray: RayCluster, worker: Callable[[str], ProcessSpec], count: int | None
    ) -> None:
        """Also keep workers running on Ray's nodes; see ``Supervisor.add_workers``."""
        on_ray = Supervisor(ray, math.inf, _notify, may_restart=self._may_restart)
        self._supervisors.append(on_ray)
        self._start_on_ray = partial(
            on_ray.add_workers, lambda name: self._with_credential(worker(name)), count
        )

    def add_teachers(self, logs: Path, specs: Sequence[ProcessSpec]) -> None:
        """Also keep processes running that replace models; see ``dist_net.photos.teaching``."""
        self._teachers = specs
        self._supervisors.append(Supervisor(LocalProcesses(logs), math.inf, _notify))

    def start(
        self,
        ended: Callable[[str, RunningChild], None],
        is_member: Callable[[str], bool],
        prepared: Callable[[ModelPrepared], None],
    ) -> asyncio.Task[None]:
        """Start the processes; return the task that supervises them on the running event loop.

        ``ended(credential, child)`` is called when a process has ended; ``is_member(credential)``
        returns whether one is in the pool; ``prepared`` is called with each version that was read.
        Raise ProcessFailedError.
        """
        self._ended, self._is_member, self._prepared = ended, is_member, prepared
        loop = asyncio.get_running_loop()
        # Not ``add_signal_handler``, which uvloop refuses for SIGCHLD.
        signal.signal(signal.SIGCHLD, lambda *_: loop.call_soon_threadsafe(self._wake.set))
        self._supervising = loop.create_task(self._supervise())
        if self._local.can_adopt:
            self._here.add(self._local.fork_server)
        for spec in self._workers:
            self._here.add(partial(self._with_credential, spec))
        self._start_on_ray()
        for spec in self._teachers:
            self._supervisors[-1].add(spec)
        return self._supervising

    def read(self, command: ReadModel | RemoveArrays) -> None:
        self._readers.execute(command)
        self._wake.set()

    def require_startable(self) -> None:
        if self._failure is not None:
            raise self._failure

    def is_child(self, credential: str) -> bool:
        return credential in self._credentials.values()

    def is_running(self, credential: str) -> bool:
        """Return whether this host's process has not ended and, by ``/proc``, is not stopped."""
        child = self._child(credential)
        if child is None or child.exit_code is not None or child.host != socket.gethostname():
            return False
        return process_state(child.process_id) not in ("T", "t", "Z", "X")

    def kill(self, credential: str, reason: str) -> None:
        """Kill a worker, even if it hangs or is stopped."""
        child = self._child(credential)
        if child is not None and child.exit_code is None:
            logger.warning("child_killed name=%s reason=%s", child.name, reason)
            child.kill_soon()

    def close(self, grace_s: float) -> None:
        """End all processes; kill the remaining processes after ``grace_s``."""
        self._supervising.cancel()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._local.stop_forking()
        self._readers.close()
        for supervisor in reversed(self._supervisors):
            supervisor.end(grace_s)

    async def _supervise(self) -> None:
        while True:
            self._local.receive()
            self._kill_outsiders(time.monotonic())
            pauses_s = [self._readers.poll(self._prepared)]
            pauses_s += [each.poll() for each in self._supervisors]
            # Not ``wait_for``: in Python 3.11 it loses a cancellation that meets the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pauses_s)):
                    await self._wake.wait()
            self._wake.clear()

    def _with_credential(self, spec: ProcessSpec) -> ProcessSpec:
        self._credentials[spec.name] = credential = secrets.token_hex(16)
        return replace(spec, arguments=(*spec.arguments, "--credential", credential))

    def _child(self, credential: str) -> RunningChild | None:
        children = (each for supervisor in self._supervisors for each in supervisor.children)
        return next((c for c in children if self._credentials.get(c.name) == credential), None)

    def _kill_outsiders(self, now: float) -> None:
        """Kill the workers that have not been members for ``JOINS_WITHIN_S``."""
        member_s, self._member_s = self._member_s, {}
        for credential in self._credentials.values():
            child = self._child(credential)
            if child is None or child.exit_code is not None or child.process_id < 0:
                continue  # Ray has not placed it yet, or it was not forked
            is_member = self._is_member(credential)
            self._member_s[credential] = now if is_member else member_s.get(credential, now)
            if now - self._member_s[credential] > JOINS_WITHIN_S:
                self.kill(credential, f"it was not in the pool for {JOINS_WITHIN_S:g} s")

    def _may_restart(self, child: RunningChild) -> bool:
        self._ended(self._credentials.get(child.name, ""), child)
        self._ends[child.name] += 1
        if self.is_begun:
            return True
        if child.exit_code == BadInputError.exit_code:
            self._failure = BadInputError(child.last_words)
        elif self._ends[child.name] >= MAX_EARLY_ENDS:
            self._failure = ProcessFailedError(
                f"{child.name} has ended {MAX_EARLY_ENDS} times before the pool was ready; the "
                f"last reason: {child.last_words} (log: {child.log})"
            )
        return self._failure is None


def _notify(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _killed(by: str) -> str:
    return (
        f"the process that read it ended: {by}; expected at most {MAX_COMPUTING_S} s of computing, "
        f"and memory for the size of its files"
    )
