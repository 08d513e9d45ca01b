"""The process that reads models for the inference pool.

    python -m dist_net.serving.model_loader --connect ADDRESS --directory DIR [NAME=]SOURCE...

A SOURCE is a MODEL as for ``dist-net predict``, or the address of a parameter server, to which
``--training-keys`` give access; it may be followed by ``,weights=FILE`` and ``,labels=FILE``.
Arrays without a file are written to ``--directory``. Prints ``READY`` on stdout when it joins the
gateway, and ``FAILED REASON`` if it fails. Logs go to stderr.

Each model is read in a process that is forked for it and ends with it: see ``model_reading``. A
file that hangs, crashes or computes forever delays no other model, and its own repair neither.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_net.clock import Clock, SystemClock
from dist_net.command_line import add_trust_argument
from dist_net.errors import JoinRefusedError, ProtocolError
from dist_net.export.onnxruntime_engine import ENGINES, NUMPY
from dist_net.nets.sources import FollowedRun, ModelSource, parse_pool_sources
from dist_net.processes.disposable import DisposableProcess, DisposableProcesses, Send
from dist_net.processes.entry import READY, entry_point, stop_on_signals
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.serving.model_reading import FOLLOW_EVERY_S, MAX_COMPUTING_S, ModelReader
from dist_net.serving.pool.description import ModelDescription
from dist_net.wire.codec import decode, encode
from dist_net.wire.messages import Heartbeat, Message, Refuse
from dist_net.wire.security import CLIENT, load_peer_keys
from dist_net.wire.serving_messages import (
    Drop,
    JoinAsLoader,
    ModelPrepared,
    PoolWelcome,
    PrepareModel,
)
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger("dist_net.serving.model_loader")

POLL_S = 0.05
MAX_READ_S = 300.0  # then the process that reads is killed, and the reload fails
NICENESS = 10  # answers have priority over new versions
UNREQUESTED = 0


@dataclass(slots=True)
class _Reading:
    """A process that reads a model for request ``version``, which it must answer by ``until_s``."""

    process: DisposableProcess
    version: int
    until_s: float


class ModelLoader(AbstractContextManager["ModelLoader"]):
    """Reads models for the gateway at ``address``, and follows training runs.

    ``directory``: for arrays without a file. ``token`` identifies the gateway's own loader.
    """

    def __init__(
        self,
        address: str,
        sources: Mapping[str, ModelSource],
        directory: Path,
        token: bytes = b"",
        *,
        clock: Clock | None = None,
        engine: str = NUMPY,
    ) -> None:
        def read(words: list[str], send: Send) -> None:
            model, version, source = words[0], int(words[1]), sources[words[0]]
            reader = ModelReader(
                model, source, directory, lambda prepared: send(encode(prepared)), engine
            )
            if version != UNREQUESTED:
                reader.prepare(version)
            if isinstance(source, FollowedRun):
                reader.follow()

        self._processes = DisposableProcesses(read)
        self._clock = clock or SystemClock()
        self._sources = sources
        self._directory = directory
        self._readings: dict[str, _Reading] = {}
        self._files: dict[str, dict[int, Path]] = defaultdict(dict)  # by model and version
        self._token = token
        self._socket = ClientSocket(address)
        self._leave_reason: str | None = None
        self._beats_s = self._beat_at_s = math.inf  # until the gateway states the interval
        self._follow_at_s = math.inf

    def stop(self, reason: str) -> None:
        """End at the next turn of the loop; safe in a signal handler."""
        self._leave_reason = reason

    def __exit__(self, *_: object) -> None:
        for reading in self._readings.values():
            self._end(reading)
        self._processes.close()
        self._socket.close()

    def serve(self) -> str:
        """Read models until stopped; return the reason.

        Raise JoinRefusedError if the gateway refuses this loader. Silence of the gateway is never a
        timeout: this process ends with it.
        """
        self._socket.send(JoinAsLoader(os.getpid(), self._token, socket.gethostname()))
        poll_s = POLL_S
        while self._leave_reason is None:
            message = self._socket.receive(poll_s)
            if message is not None:
                self.handle(message)
            poll_s = 0.0 if self.answer() else POLL_S
        return self._leave_reason

    def handle(self, message: Message) -> None:
        """Process a message of the gateway."""
        match message:
            case PrepareModel(model, version) if model in self._sources:
                self._read(model, version)
            case PrepareModel(model, version):
                self._fail(model, version, f"there is no source of {model!r}")
            case Drop(model, version):
                self._remove(model, version)
            case Refuse(reason):
                raise JoinRefusedError(f"the gateway refuses this loader: {reason}")
            case PoolWelcome(_, heartbeat_interval_s):
                now = self._clock.now()
                self._beats_s, self._beat_at_s = heartbeat_interval_s, now
                # The gateway requests each model first, unless a former loader has read it.
                self._follow_at_s = now + FOLLOW_EVERY_S
                logger.info("joined models=%s", ",".join(self._sources))
            case _:
                logger.warning("unexpected_message type=%s", type(message).__name__)

    def answer(self) -> bool:
        """Send heartbeats and results, end overdue processes; return whether a result arrived."""
        now = self._clock.now()
        if now >= self._beat_at_s:
            self._beat_at_s = now + self._beats_s
            self._socket.send(Heartbeat(0, now))
        if now >= self._follow_at_s:
            for model, source in self._sources.items():
                if isinstance(source, FollowedRun) and model not in self._readings:
                    self._read(model, UNREQUESTED)
            self._follow_at_s = now + FOLLOW_EVERY_S
        return sum(self._advance(model, now) for model in [*self._readings]) > 0

    def _read(self, model: str, version: int) -> None:
        """Start to read a model, and end the process of an earlier request."""
        if (former := self._readings.pop(model, None)) is not None:
            self._end(former)
        process = self._processes.start(f"read-{model}"[:15], model, str(version))
        until_s = math.inf if version == UNREQUESTED else self._clock.now() + MAX_READ_S
        self._readings[model] = _Reading(process, version, until_s)

    def _end(self, reading: _Reading) -> None:
        """End a process, and remove the file that it has not completed."""
        reading.process.kill()
        for partial in self._directory.glob(f"*.{reading.process.process_id}.partial"):
            partial.unlink(missing_ok=True)

    def _advance(self, model: str, now: float) -> bool:
        """Forward what the process of a model has sent; answer for one that has ended."""
        reading, is_heard = self._readings[model], False
        for frames in reading.process.received():
            is_heard = True
            self._forward(model, reading, frames)
            if self._readings[model] is not reading:
                return True
        reason = reading.process.end_reason
        if now > reading.until_s:
            reason = f"it took longer than {MAX_READ_S:g} s"
        if reason:
            self._end(reading)
            del self._readings[model]
            if reading.until_s < math.inf:
                self._fail(
                    model,
                    reading.version,
                    f"the process that read it ended: {reason}; expected at most "
                    f"{MAX_COMPUTING_S} s of computing, and memory for the size of its files",
                )
        return is_heard

    def _forward(self, model: str, reading: _Reading, frames: Any) -> None:
        """Send what a process has read. It may be under the control of the file that it read."""
        try:
            prepared = decode(frames)
            if not isinstance(prepared, ModelPrepared) or prepared.model != model:
                raise ProtocolError(f"{prepared!r:.80}; expected a version of {model}")
            if prepared.description:
                path = Path(ModelDescription.from_json(prepared.description).arrays_path)
                if not path.exists():  # a version with the same arrays was dropped meanwhile
                    self._read(model, prepared.requested)
                    return
                self._files[model][prepared.version] = path
        except ProtocolError as error:
            prepared = ModelPrepared(model, reading.version, "", str(error), reading.version)
        if prepared.requested == reading.version:
            reading.until_s = math.inf
        self._socket.send(prepared)

    def _fail(self, model: str, version: int, reason: str) -> None:
        logger.warning("not_prepared model=%s reason=%s", model, reason)
        self._socket.send(ModelPrepared(model, version, "", reason, version))

    def _remove(self, model: str, version: int) -> None:
        """Remove the file of a version that the gateway does not use, unless another has it too."""
        files = self._files[model]
        path = files.pop(version, None)
        if path is not None and path.parent == self._directory and path not in files.values():
            path.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connect", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--training-keys", type=Path)
    parser.add_argument("--weights", type=Path, help="of the one SOURCE")
    parser.add_argument("--labels", type=Path, help="of the one SOURCE")
    parser.add_argument("--token-file", type=Path, help="by which the gateway knows its loader")
    parser.add_argument("--engine", choices=ENGINES, default=NUMPY)
    add_trust_argument(parser)
    parser.add_argument("--parent", type=int)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")


def run(arguments: argparse.Namespace) -> int:
    """Read models until a signal, or until the parent process ends."""
    keys = load_peer_keys(arguments.training_keys, CLIENT) if arguments.training_keys else None
    progress = FetchProgress(plain_console())
    sources = {
        each.name: each.open(progress, keys, arguments.trust_recipe)
        for each in parse_pool_sources(arguments.sources, arguments.weights, arguments.labels)
    }
    os.nice(NICENESS)
    with ModelLoader(
        arguments.connect,
        sources,
        arguments.directory,
        arguments.token_file.read_bytes() if arguments.token_file else b"",
        engine=arguments.engine,
    ) as loader:
        stop_on_signals(loader.stop, arguments.parent)
        print(READY, flush=True)
        reason = loader.serve()
    logger.info("done reason=%s", reason)
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
