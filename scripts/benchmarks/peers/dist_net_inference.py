"""This project's inference, measured as its peers are."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from threadpoolctl import ThreadpoolController

from benchmarks.peers import darknet_task
from benchmarks.peers.orders import Peer
from benchmarks.timing import LayerStep
from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import Call, in_order
from dist_net.autodiff.operations.convolution import PlannedConvolution
from dist_net.nets.darknet.configuration import read_configuration
from dist_net.nets.sources.found_model import DarknetFiles
from dist_net.nn import Model
from dist_net.nn.inference import Inference, Prepared

PLAIN = "plain"
FAST = "fast"
IRREPRODUCIBLE = "irreproducible"  # plain too
OPTIONS = {
    PLAIN: {"compiled": False},
    FAST: {"compiled": True},
    IRREPRODUCIBLE: {"compiled": False, "reproducible": False},
}


@cache
def model_in(directory: Path) -> tuple[Model, Prepared]:
    """The net in ``directory`` with its prepared kernels, which are mapped."""
    configuration = read_configuration(directory / darknet_task.CONFIGURATION)
    weights = directory / darknet_task.WEIGHTS
    found = DarknetFiles(lambda: configuration, lambda: weights, ()).read()
    return found.own_model, found.prepared


class DistNet:
    """Ours with one kind of kernels, PLAIN, FAST or IRREPRODUCIBLE, on the net in a directory."""

    def __init__(self, kernels: str) -> None:
        self.options = OPTIONS[kernels]

    def prepare(self, directory: Path) -> None:
        """Writes what an inference process finds ready when it starts."""
        model_in(directory)

    def load(self, directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
        """A function whose run gives the probabilities (batch, classes) of the task's images."""
        model, prepared = model_in(directory)
        inference = Inference(model, prepared, threads, batch, **self.options)
        inputs = darknet_task.images(batch, model.input_shape)
        return lambda: inference(inputs)

    def layers(self, directory: Path, batch: int, threads: int) -> Sequence[LayerStep]:
        """The steps that one run takes. BLAS is left with one thread, as in a run."""
        model, prepared = model_in(directory)
        inference = Inference(model, prepared, threads, batch, **self.options)
        ThreadpoolController().limit(limits=1)
        return [layer_step(node, calls) for node, calls in inference.steps(batch)]


def layer_step(node: Expression, calls: Sequence[Call]) -> LayerStep:
    """A step of a plan, described for a table."""
    if not isinstance(node.operation, PlannedConvolution):
        return LayerStep(type(node.operation).__name__.lower(), "", 0.0, in_order(calls))
    problem = node.operation.problem
    (height, width), (stride, _) = problem.windows.size, problem.windows.stride
    name = (
        f"{height}x{width} /{stride} {problem.x[1]}x{problem.x[2]}x{problem.x[3]} to "
        f"{problem.out[3]}"
    )
    algorithm = node.operation.choice.algorithm.name
    flops = 2.0 * math.prod(problem.out) * problem.row_length  # of the direct convolution
    return LayerStep(name, algorithm, flops, in_order(calls))


if __name__ == "__main__":
    ours = DistNet(sys.argv[2])
    Peer("dist-net", ours.load, ours.prepare, ours.layers).obey()
