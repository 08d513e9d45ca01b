"""The outputs of a net of ``scripts/bench small-nets``: by this project, or by ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import dist_net
from benchmarks.peers.nets import lenet, mlp
from benchmarks.peers.onnxruntime_inference import session_of
from benchmarks.peers.orders import Peer
from dist_net import nn
from dist_net.nn.inference import Inference, prepare

SEED = 0
Outputs = Callable[[], NDArray[np.float32]]


def two_convolutions() -> nn.Layer:
    layers = [nn.Conv2D(filters, 3, activation="relu") for filters in (8, 16)]
    return nn.Sequential(layers, nn.GlobalAveragePool(), nn.Dense(10))


NETS: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(128), (784,)),
    "wide mlp": (lambda: mlp(512, 512), (784,)),
    "two convolutions": (two_convolutions, (28, 28, 1)),
    "lenet": (lenet, (28, 28, 1)),
}


def outputs_of(name: str, engine: str, batch: int, threads: int) -> Outputs:
    """A function that computes the outputs of a batch by ``engine``, a key of ``computing``."""
    network, shape = NETS[name]
    model = nn.Model(network(), shape, input_dtype=np.float32)
    model.weights = weights = model.layout.initial(np.random.default_rng(SEED))
    inputs = np.random.default_rng(SEED).standard_normal((batch, *shape), np.float32)

    def inference(reproducible: bool) -> Outputs:
        session = Inference(model, prepare(model, weights), threads, batch, reproducible)
        return lambda: session(inputs)

    def onnxruntime() -> Outputs:
        with TemporaryDirectory() as directory:
            file = Path(directory) / "net.onnx"
            dist_net.export_model(model, file)
            session: Any = session_of(file, "N", batch, threads)
        feeds = {session.get_inputs()[0].name: inputs}
        return lambda: session.run(None, feeds)[0]

    computing: dict[str, Callable[[], Outputs]] = {
        "reproducible": lambda: inference(True),
        "irreproducible": lambda: inference(False),
        "predict": lambda: lambda: model.predict(inputs),
        "onnxruntime": onnxruntime,
    }
    return computing[engine]()


def load(_directory: Path, batch: int, threads: int) -> Outputs:
    """A function that computes the outputs of the net and by the engine on the command line."""
    threadpool_limits(1)  # of BLAS, as in a pool's worker
    name, engine = sys.argv[2:]
    return outputs_of(name, engine, batch, threads)


if __name__ == "__main__":
    Peer("dist-net", load).obey()
