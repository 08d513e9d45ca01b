"""How far a network's float32 is from float64, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dist_net import autodiff
from dist_net.autodiff import Array, Expression, Plan
from dist_net.autodiff.compiler.float64 import in_float64
from dist_net.darknet.network import DarknetNetwork
from dist_net.nn import Scope
from dist_net.vector import Vector


def layer_errors(
    network: DarknetNetwork,
    weights: Vector,
    images: NDArray[np.float32],
    compile: Callable[[Sequence[Expression]], Plan] = autodiff.compile,
) -> dict[str, float]:
    """The error of each layer's output, by the layer's name, for a batch of ``images``.

    An error is the largest difference between what ``compile`` makes of the float32 graph and the
    float64 values of the same graph, over the largest of those values. Each layer's error has in
    it what the layers before did.
    """
    x = autodiff.variable("inputs", images.shape)
    outputs = network.outputs(x, Scope())
    arrays: dict[str, Array] = {"inputs": images, **network.layout.views(weights)}
    in_double = {name: array.astype(np.float64) for name, array in arrays.items()}
    exact = autodiff.compile(in_float64(outputs)).bind(in_double).run()
    found = compile(outputs).bind(arrays).run()
    return {
        layer.name: float(np.abs(np.subtract(values, truth)).max() / np.abs(truth).max())
        for layer, values, truth in zip(network.layers, found, exact, strict=True)
    }
