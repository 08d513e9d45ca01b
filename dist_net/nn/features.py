"""The features of a trained network: the input of its last layer, for a new layer to use."""

from __future__ import annotations

from dataclasses import dataclass

from dist_net.autodiff import Expression, mean
from dist_net.autodiff.expression import Variable, topological_order
from dist_net.autodiff.operations.convolution import Conv2D
from dist_net.autodiff.operations.matmul import MatMul
from dist_net.errors import ShapeError
from dist_net.nn.layers import Layer
from dist_net.nn.parameters import Scope


@dataclass(frozen=True)
class Features:
    """A network without its last dense layer or convolution, and all that follows it.

    Its output, (N, features), is that layer's input; if that is a map, its mean over rows and
    columns. It has the parameters and buffers that are left, under the same names.
    """

    network: Layer

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        whole = scope.beside()
        output = self.network(x, whole)
        last = _last_with_parameters(output)
        if last is None:
            raise ShapeError(f"Features: {output} is computed without a dense layer or convolution")
        features = last.inputs[0]
        if features.ndim == 4:
            features = mean(features, (1, 2))
        if features.ndim != 2:
            raise ShapeError(
                f"Features: the last layer is given {features.shape}; expected (N, features) or "
                f"(N, H, W, features)"
            )
        reached = {
            node.operation.name
            for node in topological_order([features])
            if isinstance(node.operation, Variable)
        }
        scope.take_over(whole, reached)
        return features


def _last_with_parameters(output: Expression) -> Expression | None:
    return next(
        (
            node
            for node in reversed(topological_order([output]))
            if isinstance(node.operation, MatMul | Conv2D)
        ),
        None,
    )
