"""The process that reads models for the inference pool.

    python -m dist_net.serving.model_loader --connect ADDRESS --directory DIR [NAME=]SOURCE...

A SOURCE is a MODEL as for ``dist-net predict``, or the address of a parameter server, to which
``--training-keys`` give access; it may be followed by ``,weights=FILE`` and ``,labels=FILE``.
Arrays without a file are written to ``--directory``. Prints ``READY`` on stdout when it joins the
gateway, and ``FAILED REASON`` if it fails. Logs go to stderr.

A separate thread reads each model, so a hanging source, such as a file on a dead server, does not
block the others.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.clock import Clock, SystemClock
from dist_net.command_line import add_trust_argument
from dist_net.data import Dataset
from dist_net.data.samples import samples_of
from dist_net.errors import (
    BadInputError,
    DistNetError,
    JoinRefusedError,
    ModelLoadError,
    RunDirectoryError,
)
from dist_net.export.onnxruntime_engine import ENGINES, NUMPY, computed_by
from dist_net.images.fitting import unfitted
from dist_net.nets.sources import FollowedRun, FoundModel, ModelSource, parse_pool_sources
from dist_net.nn.prepared import map_prepared, write_prepared
from dist_net.processes.entry import READY, entry_point, stop_on_signals
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker.loaded_models import keep_newest
from dist_net.wire.messages import Heartbeat, Message, Refuse
from dist_net.wire.security import CLIENT, load_peer_keys
from dist_net.wire.serving_messages import JoinAsLoader, ModelPrepared, PoolWelcome, PrepareModel
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger("dist_net.serving.model_loader")

POLL_S = 0.05
MAX_READ_S = 300.0  # then a pending reload fails
FOLLOW_EVERY_S = 1.0
MAX_PAUSE_S = 30.0  # between attempts to reach a silent training run
NICENESS = 10  # answers have priority over new versions

MAX_SAMPLES = 12
MAX_SAMPLE_BYTES = 8 << 20  # of their pixels


class ModelReader(Thread):
    """Reads one model on request, and follows its training run.

    A request that is None ends it. ``report`` receives the answers to ``PrepareModel`` messages,
    and new versions of a training run, at most one per second. ``directory``: for arrays without
    a file.
    """

    def __init__(
        self,
        model: str,
        source: ModelSource,
        directory: Path,
        report: Callable[[ModelPrepared], None],
        clock: Clock,
        engine: str = NUMPY,
    ) -> None:
        super().__init__(name=f"read-{model}", daemon=True)  # the process ends even if it hangs
        self.requests: SimpleQueue[int | None] = SimpleQueue()
        self._model = model
        self._source = source
        self._directory = directory
        self._report = report
        self._clock = clock
        self._engine = engine
        self._followed_version = -1
        self._pause_s = FOLLOW_EVERY_S
        # The gateway requests each model first, unless a former loader has read it.
        self._follow_at_s = clock.now() + FOLLOW_EVERY_S

    def run(self) -> None:
        while True:
            wait_s = None
            if isinstance(self._source, FollowedRun):
                wait_s = max(0.0, self._follow_at_s - self._clock.now())
            try:
                version = self.requests.get(timeout=wait_s)
            except Empty:
                self.follow()
                continue
            if version is None:
                return
            self._report(self.prepare(version))

    def prepare(self, version: int) -> ModelPrepared:
        """Return the answer to a ``PrepareModel``."""
        try:
            with _as_own_errors():
                return self._read(version)._replace(requested=version)
        except DistNetError as error:
            logger.warning("not_prepared model=%s error=%s", self._model, error)
            is_bad_input = isinstance(error, BadInputError)
            return ModelPrepared(self._model, version, "", str(error), version, is_bad_input)

    def follow(self) -> None:
        """Report the training run's version if it is new."""
        assert isinstance(self._source, FollowedRun)
        begun_s = self._clock.now()
        try:
            with _as_own_errors():
                if self._source.version() != self._followed_version:
                    self._report(self._read(0))
            self._pause_s = FOLLOW_EVERY_S
        except DistNetError as error:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            logger.warning("not_followed model=%s error=%s", self._model, error)
        self._follow_at_s = begun_s + self._pause_s

    def _read(self, version: int) -> ModelPrepared:
        """Read the model and write its arrays to a file. Raise a DistNetError."""
        name, found = self._model, computed_by(self._source.read(), self._engine)
        if found.version is not None:
            version = self._followed_version = found.version
        description = described(found, name, version, self._directory)
        samples = _samples(found, name)
        logger.info("prepared model=%s version=%d samples=%d", name, version, len(samples) // 2)
        return ModelPrepared(name, version, description.to_json(), "", payloads=samples)


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
        clock: Clock | None = None,
        engine: str = NUMPY,
    ) -> None:
        self._clock = clock or SystemClock()
        self._read: SimpleQueue[ModelPrepared] = SimpleQueue()
        self._readers = {
            name: ModelReader(name, source, directory, self._read.put, self._clock, engine)
            for name, source in sources.items()
        }
        self._requested: dict[str, tuple[int, float]] = {}  # by model, and when it was
        self._token = token
        self._socket = ClientSocket(address)
        self._leave_reason: str | None = None
        self._beats_s = self._beat_at_s = math.inf  # until the gateway states the interval

    def stop(self, reason: str) -> None:
        """End at the next turn of the loop; safe in a signal handler."""
        self._leave_reason = reason

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.requests.put(None)
        self._socket.close()

    def serve(self) -> str:
        """Read models until stopped; return the reason.

        Raise JoinRefusedError if the gateway refuses this loader. Silence of the gateway is never a
        timeout: this process ends with it.
        """
        self._socket.send(JoinAsLoader(os.getpid(), self._token, socket.gethostname()))
        message = None
        while message is None and self._leave_reason is None:
            message = self._socket.receive(POLL_S)
        for reader in self._readers.values():
            reader.start()
        while self._leave_reason is None:
            if message is not None:
                self.handle(message)
            self.answer()
            message = self._socket.receive(POLL_S)
        return self._leave_reason

    def handle(self, message: Message) -> None:
        """Process a message of the gateway."""
        match message:
            case PrepareModel(model, version) if model in self._readers:
                self._requested[model] = version, self._clock.now()
                self._readers[model].requests.put(version)
            case PrepareModel(model, version):
                reason = f"there is no source of {model!r}"
                self._socket.send(ModelPrepared(model, version, "", reason, version))
            case Refuse(reason):
                raise JoinRefusedError(f"the gateway refuses this loader: {reason}")
            case PoolWelcome(_, heartbeat_interval_s):
                self._beats_s, self._beat_at_s = heartbeat_interval_s, self._clock.now()
                logger.info("joined models=%s", ",".join(self._readers))
            case _:
                logger.warning("unexpected_message type=%s", type(message).__name__)

    def answer(self) -> None:
        """Send heartbeats, the results, and a failure for each model that takes too long.

        Its reader continues. Its result is sent later, as the answer.
        """
        now = self._clock.now()
        if now >= self._beat_at_s:
            self._beat_at_s = now + self._beats_s
            self._socket.send(Heartbeat(0, now))
        while True:
            try:
                prepared = self._read.get_nowait()
            except Empty:
                break
            if self._requested.get(prepared.model, (-1, 0.0))[0] == prepared.requested:
                del self._requested[prepared.model]
            self._socket.send(prepared)
        for model, (version, asked_s) in self._requested.items():
            if now - asked_s > MAX_READ_S:
                self._requested[model] = version, math.inf
                reason = f"reading it takes longer than {MAX_READ_S:g} s, and continues"
                self._socket.send(ModelPrepared(model, version, "", reason, version))


@contextmanager
def _as_own_errors() -> Iterator[None]:
    """Convert any exception: a recipe is foreign code, and a file or a server may send anything."""
    try:
        yield
    except DistNetError:
        raise
    except Exception as error:
        logger.exception("not_read")
        raise ModelLoadError(f"{type(error).__name__}: {error}") from error


def _samples(found: FoundModel, name: str) -> tuple[bytes, ...]:
    """Return the payloads of a ``ModelPrepared``; none if the run's images are damaged."""
    try:
        held_out = found.held_out()
    except RunDirectoryError as error:
        logger.warning("no_samples model=%s error=%s", name, error)
        return ()
    if held_out is None:
        return ()
    images = sample_images(held_out, found.labels, found.fitting)
    return tuple(part for label, png in images for part in (label.encode(), png))


def described(found: FoundModel, name: str, version: int, directory: Path) -> ModelDescription:
    """Describe a model for the gateway and its workers, once its arrays are in a file.

    Arrays without a file are written to ``directory``, which keeps the newest files of each model.
    Raise PreparedKernelsError if writing fails.
    """
    model, file = found.model, found.file
    inputs, outputs = found.specs
    if file is None:
        file = directory / f"{name}.{found.key[:32]}.prepared"
        if map_prepared(file, found.key) is None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been removed
            write_prepared(file, found.prepared, found.key)
        else:
            file.touch()  # it is the newest again
        keep_newest(directory, name)
    return ModelDescription(
        name=name,
        version=version,
        inputs=inputs,
        outputs=outputs,
        classes=model.classes,
        labels=found.labels,
        takes_images=found.takes_images,
        has_logits=found.has_logits,
        architecture=found.architecture,
        unknown_below=found.unknown_below,
        fitting=found.fitting,
        has_classes=bool(found.labels),
        is_batched=found.is_batched,
        arrays_path=str(file.absolute()),
        arrays_bytes=file.stat().st_size,
        arrays_key=found.key,
    )


def sample_images(
    held_out: Dataset, labels: Sequence[str], fitting: str
) -> list[tuple[str, bytes]]:
    """Return the label and the PNG file of some uint8 images, from as many classes as possible.

    ``fitting`` converts each file to the image that was held out, bit for bit.
    """
    images = samples_of(held_out.test_inputs)
    targets = np.empty(len(images), np.int64)
    samples_of(held_out.test_targets).read(np.arange(len(targets)), targets)
    most = min(MAX_SAMPLES, MAX_SAMPLE_BYTES // int(np.prod(images.shape)))
    indices = first_of_each_class(targets)[:most]
    chosen = np.empty((len(indices), *images.shape), np.uint8)
    images.read(indices, chosen)
    return [
        (labels[target], _png(unfitted(each, fitting)))
        for target, each in zip(targets[indices], chosen, strict=True)
    ]


def first_of_each_class(targets: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return all indices: the first of each class, then the second of each, and so on."""
    by_class = np.argsort(targets, kind="stable")
    counts = np.unique(targets, return_counts=True)[1]
    place_in_class = np.concatenate([np.arange(count) for count in counts])
    return by_class[np.argsort(place_in_class, kind="stable")]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
    return file.getvalue()


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
    with ModelLoader(
        arguments.connect,
        sources,
        arguments.directory,
        arguments.token_file.read_bytes() if arguments.token_file else b"",
        engine=arguments.engine,
    ) as loader:
        os.nice(NICENESS)
        stop_on_signals(loader.stop, arguments.parent)
        print(READY, flush=True)
        reason = loader.serve()
    logger.info("done reason=%s", reason)
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
