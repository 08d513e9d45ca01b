"""The engine, 3 of 6: the naive evaluator. A plan computes the same values, but faster.

It walks the graph once, inputs before users, and computes each node into an array of its own. Each
call sorts the graph anew and allocates every array anew: ``steps``, ``buffers`` and ``plan`` do
that work once, for many runs. The tests compare plans with what this function returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dist_net.autodiff.arrays import Array
from dist_net.autodiff.expression import Constant, Expression, Variable, View, topological_order


def evaluate_naively(outputs: Sequence[Expression], /, **arrays: Array) -> list[Array]:
    """The values of ``outputs`` for these variables' arrays, which must be of their shapes."""
    values: dict[int, Array] = {}
    for node in topological_order(outputs):
        inputs = [values[id(each)] for each in node.inputs]
        match node.operation:
            case Variable(name):
                value = np.array(arrays[name], order="C")
            case Constant(value):
                pass
            case View() as operation:
                value = np.array(operation.view(*inputs), order="C")
            case operation:
                value = np.empty(node.shape, node.dtype)
                operation.bind(inputs, value)()
        values[id(node)] = value
    return [values[id(each)] for each in outputs]
