"""What ``scripts/bench serving`` asks: nets of seeded weights, their gateway, and requests."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.errors import BenchmarkError
from benchmarks.peers import darknet_task
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.published import published
from dist_net.processes.launcher import Child, ProcessSpec, end

TINY = "tiny"
DARKNET53 = "darknet53"
CONVOLUTIONS = "convolutions"
TINY_SHAPE = (28, 28, 1)
CONVOLUTION = "[convolutional]\nbatch_normalize=1\npad=1\nactivation=leaky"
CONFIGURATIONS = {
    TINY: """
[net]
height=28
width=28
channels=1

[connected]
output=10
activation=linear

[softmax]
""",
    # One of each way to compute a convolution: direct, direct with a stride, pointwise, F(4x4),
    # F(2x2) with a stride, F(2x2), on maps of 32, 16 and 8.
    CONVOLUTIONS: f"""
[net]
height=32
width=32
channels=3

{CONVOLUTION}
filters=16
size=3

{CONVOLUTION}
filters=32
size=3
stride=2

{CONVOLUTION}
filters=64
size=1

{CONVOLUTION}
filters=64
size=3

{CONVOLUTION}
filters=64
size=3
stride=2

{CONVOLUTION}
filters=64
size=3

[shortcut]
from=-2
activation=linear

[avgpool]

[convolutional]
filters=10
size=1
activation=linear

[softmax]
""",
}
SEED = 0
REQUESTS = 16
CLIENTS = 16  # of a closed loop
PATIENCE_S = 60.0
BATCHES_RAMP_S = 2.0  # some batches: the first ones are small, and both workers' begin together
PATCHES = 32  # across an image, so that its JPEG is as large as a photograph's

START_S = 120.0
END_S = 30.0


class PoolSize(NamedTuple):
    """How many workers a pool has, and how many threads each."""

    workers: int
    threads: int = 1

    @property
    def options(self) -> tuple[str, ...]:
        """As ``dist-net serve`` takes them."""
        return "--workers", str(self.workers), "--threads", str(self.threads)


class Gateway:
    """``dist-net serve`` of nets in a directory, on loopback; a context manager."""

    def __init__(self, sources: Sequence[str], directory: Path, *options: str) -> None:
        words = "serve", *sources, "--http", "127.0.0.1:0", *options
        self.child = Child(ProcessSpec("gateway", "dist_net", words), directory)
        try:
            said = dict(word.split("=", 1) for word in self.child.wait_until_ready(START_S))
            self.port = int(said["http"].rpartition(":")[2].rstrip("/"))
            self.address = said["http"]
        except BaseException:
            self.child.kill()
            raise

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.terminate()
        end([self.child], END_S)

    def status(self) -> dict[str, Any]:
        """The pool as it is now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/pool", timeout=10) as answer:
            status: dict[str, Any] = json.load(answer)
            return status

    def worker_ids(self) -> list[int]:
        """The process ids of its workers."""
        return [int(worker["process_id"]) for worker in self.status()["workers"]]

    def wait_until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Waits until something holds of its status. Raises BenchmarkError if it never does."""
        deadline = monotonic() + START_S
        while not holds(self.status()):
            if monotonic() > deadline:
                raise BenchmarkError(f"not within {START_S:g} s: {what}")
            sleep(0.05)


@dataclass(frozen=True)
class Net:
    """One net's files, and the source by which the gateway reads it."""

    name: str
    directory: Path

    @property
    def source(self) -> str:
        """As ``dist-net serve`` takes it."""
        files = self.directory
        return (
            f"{self.name}={files / darknet_task.CONFIGURATION},"
            f"weights={files / darknet_task.WEIGHTS},labels={files / 'labels.txt'}"
        )


def write_net(name: str, directory: Path) -> Net:
    """TINY, CONVOLUTIONS or DARKNET53 with seeded weights, in a directory of its own."""
    directory.mkdir()
    if name == DARKNET53:
        configuration = published(name).configuration()
    else:
        configuration = parse_configuration(CONFIGURATIONS[name], name)
    darknet_task.write_net(configuration, directory)
    classes = 1000 if name == DARKNET53 else 10
    labels = "".join(f"class {index}\n" for index in range(classes))
    (directory / "labels.txt").write_text(labels)
    return Net(name, directory)


def row_requests(directory: Path, model: str, timeout_s: float | None = None) -> list[str]:
    """Files of requests, each with a row of random numbers as JSON, for a TINY net."""
    rows = np.random.default_rng(SEED).random((REQUESTS, *TINY_SHAPE), np.float32)
    bodies = []
    for row in rows:
        tensor = {"name": "input", "shape": [1, *TINY_SHAPE], "datatype": "FP32"}
        numbers = [round(float(number), 6) for number in row.ravel()]
        body: dict[str, Any] = {"inputs": [tensor | {"data": numbers}]}
        if timeout_s is not None:
            body["parameters"] = {"timeout": round(1e6 * timeout_s)}
        bodies.append(json.dumps(body).encode())
    head = f"POST /v2/models/{model}/infer HTTP/1.1"
    return write_requests(directory, head, bodies)


def image_requests(directory: Path, model: str, timeout_s: float) -> list[str]:
    """Files of requests, each with a JPEG for a worker to decode, by the binary extension."""
    bodies, sizes = [], []
    for image in encoded_images():
        tensor = {
            "name": "input",
            "shape": [1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(image) + 4},
        }
        body = {"parameters": {"timeout": round(1e6 * timeout_s)}, "inputs": [tensor]}
        header = json.dumps(body).encode()
        bodies.append(header + len(image).to_bytes(4, "little") + image)
        sizes.append(len(header))
    head = f"POST /v2/models/{model}/infer HTTP/1.1"
    more = [f"Inference-Header-Content-Length: {size}\r\n" for size in sizes]
    return write_requests(directory, head, bodies, more)


def encoded_images() -> list[bytes]:
    """JPEG files of 256 x 256 pixels, with some structure and some noise."""
    generator = np.random.default_rng(SEED)
    return [jpeg(generator) for _ in range(REQUESTS)]


def jpeg(generator: np.random.Generator) -> bytes:
    """An image of coloured patches."""
    patches: NDArray[np.uint8] = generator.integers(0, 256, (PATCHES, PATCHES, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(patches.repeat(8, 0).repeat(8, 1)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_requests(
    directory: Path, head: str, bodies: Sequence[bytes], more: Sequence[str] | None = None
) -> list[str]:
    """Whole HTTP requests, a file each; ``more`` are further lines of each one's head."""
    directory.mkdir()
    paths = []
    for index, body in enumerate(bodies):
        further = more[index] if more else "Content-Type: application/json\r\n"
        lines = f"{head}\r\nHost: 127.0.0.1\r\n{further}Content-Length: {len(body)}\r\n\r\n"
        path = directory / f"{index}.http"
        path.write_bytes(lines.encode() + body)
        paths.append(str(path))
    return paths
