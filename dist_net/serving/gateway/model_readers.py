"""The processes that read models for the gateway: the fork server forks one for each.

    ReadModel ─▶ a process reads within limits ─▶ a file with its answer ─▶ ModelPrepared

A file that hangs, crashes or computes forever delays no other model, and its own repair neither. A
process may be under the control of the file that it reads.
"""

import logging
import math
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgpack

from dist_net.errors import BadInputError, ProtocolError
from dist_net.ground.clock import Clock
from dist_net.ground.files import read_regular_file
from dist_net.processes.child import RunningChild
from dist_net.processes.launcher import ProcessSpec
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


class PoolSources(NamedTuple):
    """``words``: arguments by model; ``followed``: in training; ``directory``: for answers."""

    words: Mapping[str, Sequence[str]]
    followed: Container[str]
    directory: Path


@dataclass(slots=True)
class _Reading:
    """A process that reads a model for request ``version``, which it must answer by ``until_s``."""

    child: RunningChild
    version: int
    until_s: float


class ModelReaders:
    """Reads models, each by one process of ``start`` at a time, and follows training runs."""

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
                self._read(model, self._requested.pop(model), now)
        return POLL_S if self._readings else math.inf

    def close(self) -> None:
        for reading in self._readings.values():
            reading.child.kill()

    def _read(self, model: str, version: int, now: float) -> None:
        with suppress(OSError):  # of a process that ended
            answer_file(self._directory, model).unlink()
        words = READ_OPTION, str(version), *self._words[model]
        until_s = math.inf if version == UNREQUESTED else now + MAX_READ_S
        child = self._start(ProcessSpec(f"reader-{model}", model_reading.__name__, words))
        self._readings[model] = _Reading(child, version, until_s)

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
        """Return the next answer of a model's process, if there is one. Raise ProtocolError."""
        file = answer_file(self._directory, model)
        try:
            frames = msgpack.unpackb(read_regular_file(file, MAX_ANSWER_BYTES))
        except OSError:  # there is none, or no free descriptor
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


def _killed(by: str) -> str:
    return (
        f"the process that read it ended: {by}; expected at most {MAX_COMPUTING_S} s of computing, "
        f"and memory for the size of its files"
    )
