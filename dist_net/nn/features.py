"""Feature extraction: a trained network without its last layer."""

from __future__ import annotations

from dataclasses import dataclass

from dist_net.autodiff import Expression, mean
from dist_net.autodiff.expression import Variable, topological_order
from dist_net.autodiff.operations.convolution import Conv2D
from dist_net.autodiff.operations.matmul import MatMul
from dist_net.errors import ShapeError
from dist_net.nn.layers import Layer
from dist_net.nn.parameters import Scope

PARAMETRIC = MatMul | Conv2D


@dataclass(frozen=True)
class Features:
    """A network without its last dense layer or convolution and everything after it.

    The output, ``(N, features)``, is that layer's input, averaged over rows and columns if it is a
    map. The remaining parameters and buffers keep their names.
    """

    network: Layer

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        whole = scope.beside()
        output = self.network(x, whole)
        nodes = topological_order([output])
        last = next((each for each in nodes[::-1] if isinstance(each.operation, PARAMETRIC)), None)
        if last is None:
            raise ShapeError(f"Features: {output} has no dense layer or convolution to remove")
        features = last.inputs[0]
        if features.ndim == 4:
            features = mean(features, (1, 2))
        if features.ndim != 2:
            raise ShapeError(
                f"Features: the last layer's input has shape {features.shape}; expected "
                f"(N, features) or (N, H, W, features)"
            )
        reached = {
            node.operation.name
            for node in topological_order([features])
            if isinstance(node.operation, Variable)
        }
        scope.take_over(whole, reached)
        return features
