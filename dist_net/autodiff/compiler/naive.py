"""The engine, 3 of 6: the naive evaluator, which a plan does the same as, but in less time.

It walks the graph once, inputs before users, and computes each node into an array of its own. What
is slow about it is what ``steps``, ``buffers`` and ``plan`` are for: it sorts the graph, allocates
and binds at each call, and every value goes through memory. Tests hold plans against it.
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
