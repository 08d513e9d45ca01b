"""The process that reads one model for the pool, within limits, and ends; the fork server forks it.

    --read VERSION --directory DIR [NAME=]SOURCE

A SOURCE is a MODEL as for ``dist-net predict``, or the address of a parameter server, to which
``--training-keys`` give access; it may be followed by ``,weights=FILE`` and ``,labels=FILE``.

A file, a recipe's code and a training run are foreign: whatever they do to this process, the
gateway reports it. It leaves one file of arrays and its description.
"""

import argparse
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data import Dataset
from dist_net.data.samples import samples_of
from dist_net.errors import BadInputError, DistNetError, ModelLoadError, RunDirectoryError
from dist_net.export.onnxruntime_engine import ENGINES, NUMPY, computed_by
from dist_net.ground.command_line import add_trust_argument
from dist_net.ground.files import replacing
from dist_net.images.fitting import unfitted
from dist_net.nets.foreign_onnx import open_session, outputs_by_name
from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.nets.sources.found_model import FoundModel, RunFiles
from dist_net.nets.sources.named_source import ModelSource, files_of, parse_named_source
from dist_net.nn.inference import map_prepared, write_prepared
from dist_net.processes.entry import entry_point, limit_memory, terminate_after
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.serving.pool.description import MEMORY_BYTES, MEMORY_PER_BYTE, ModelDescription
from dist_net.wire.codec import encode
from dist_net.wire.security import CLIENT, load_peer_keys
from dist_net.wire.serving_messages import ModelPrepared

logger = logging.getLogger(__name__)

READ_OPTION = "--read"
UNREQUESTED = 0
NICENESS = 10  # answers have priority over new versions
POLL_S = 0.01
FOLLOW_EVERY_S = 1.0
MAX_PAUSE_S = 30.0  # between attempts to reach a silent training run

MAX_COMPUTING_S = 120
MAX_OPEN_FILES = 256

MAX_SAMPLES = 12
MAX_SAMPLE_BYTES = 8 << 20  # of their pixels


@dataclass
class ModelReader:
    """Reads one model, and follows its training run; arrays without a file go to ``directory``."""

    model: str
    source: ModelSource
    directory: Path
    report: Callable[[ModelPrepared], None]
    engine: str = NUMPY

    def prepare(self, version: int) -> None:
        """Read the model within limits, and report the answer to a request."""
        try:
            with _as_own_errors():
                if files := files_of(self.source):
                    size = sum(each.stat().st_size for each in files if each.is_file())
                    memory_bytes = MEMORY_BYTES + MEMORY_PER_BYTE * size
                    limit_process(memory_bytes, MAX_COMPUTING_S, MAX_OPEN_FILES)
                prepared = self._read(version)._replace(requested=version)
        except DistNetError as error:
            logger.warning("not_prepared model=%s error=%s", self.model, error)
            is_bad_input = isinstance(error, BadInputError)
            prepared = ModelPrepared(self.model, version, "", str(error), version, is_bad_input)
        self.report(prepared)

    def follow(self) -> None:
        """Report each new version of a training run, at most one per second; never return."""
        pause_s = FOLLOW_EVERY_S
        while True:
            pause_s = self.followed(pause_s)
            time.sleep(pause_s)

    def followed(self, pause_s: float) -> float:
        """Report the training run's version if it is new; return the pause until the next call."""
        assert isinstance(self.source, FollowedRun)
        try:
            with _as_own_errors():
                if self.source.version() != self.source.version_read:
                    self.report(self._read(0))
            return FOLLOW_EVERY_S
        except DistNetError as error:
            logger.warning("not_followed model=%s error=%s", self.model, error)
            return min(2 * pause_s, MAX_PAUSE_S)

    def _read(self, version: int) -> ModelPrepared:
        """Read the model and write its arrays to a file. Raise a DistNetError."""
        name, found = self.model, computed_by(self.source.read(), self.engine)
        if found.version is not None:
            version = found.version
        if isinstance(self.source, RunFiles):
            # A net with a plan that needs too much memory must not reach a worker.
            inputs, outputs = found.specs
            zeros = {each.name: np.zeros((1, *each.shape), each.dtype) for each in inputs}
            session = open_session(found.model, found.prepared, batch_size=1, compiled=False)
            with closing(session):
                outputs_by_name(found.model, session, zeros, outputs)
        description = described(found, name, version, self.directory)
        samples = _samples(found, name)
        logger.info("prepared model=%s version=%d samples=%d", name, version, len(samples) // 2)
        return ModelPrepared(name, version, description.to_json(), "", payloads=samples)


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
    """Describe a model; arrays without a file go to ``directory``. Raise PreparedKernelsError."""
    model, file = found.model, found.file
    inputs, outputs = found.specs
    if file is None:
        file = directory / f"{name}.{found.key[:32]}.prepared"
        if map_prepared(file, found.key) is None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been removed
            write_prepared(file, found.prepared, found.key)
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
    """Return labels and PNG files of many classes; ``fitting`` restores each image bit for bit."""
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


def answer_file(directory: Path, model: str) -> Path:
    """Return the file in which a model's process answers; the gateway removes it."""
    return directory / f"{model}.answer"


def limit_process(memory_bytes: int, computing_s: int, open_files: int) -> None:
    """Limit this process's memory, further computing and open files; it writes no core file."""
    limit_memory(memory_bytes, is_final=True)
    for kind, limit in (
        (resource.RLIMIT_CPU, math.ceil(time.process_time()) + computing_s),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    image.save(file, "PNG", compress_level=1)  # the default takes four times as long
    return file.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(READ_OPTION, type=int, required=True, help="the version, or 0 to follow")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--training-keys", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default=NUMPY)
    add_trust_argument(parser)
    parser.add_argument("source", metavar="[NAME=]SOURCE")


def run(arguments: argparse.Namespace) -> int:
    """Read the model once, or follow its training run until the gateway ends."""
    terminate_after(arguments.parent)
    os.nice(NICENESS)
    if arguments.read == UNREQUESTED:
        time.sleep(FOLLOW_EVERY_S)  # after the end of another process, which may end likewise
    keys = load_peer_keys(arguments.training_keys, CLIENT) if arguments.training_keys else None
    named = parse_named_source(arguments.source)
    file = answer_file(arguments.directory, named.name)
    followed = file.with_suffix(".followed")  # for the next process of this model

    def report(prepared: ModelPrepared) -> None:
        while file.exists():  # the gateway has not read the former answer yet
            time.sleep(POLL_S)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been removed
        with replacing(file) as partial:
            partial.write_bytes(msgpack.packb(encode(prepared)))
        if isinstance(source, FollowedRun):
            with replacing(followed) as partial:
                partial.write_text(source.to_json())

    source = named.open(FetchProgress(plain_console()), keys, arguments.trust_recipe)
    if isinstance(source, FollowedRun) and followed.exists():
        source.resume(followed.read_text())
    reader = ModelReader(named.name, source, arguments.directory, report, arguments.engine)
    if arguments.read != UNREQUESTED:
        reader.prepare(arguments.read)
    if isinstance(source, FollowedRun):
        reader.follow()
    return 0


def main(words: Sequence[str] | None = None) -> int:
    return entry_point(add_arguments, run, words)


if __name__ == "__main__":
    sys.exit(main())
