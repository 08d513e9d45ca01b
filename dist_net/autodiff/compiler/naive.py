"""The engine, 3 of 5: the naive evaluator. A plan computes the same values faster.

It walks the graph once, inputs before users, and computes each node into its own array. Every call
sorts the graph and allocates the arrays again; ``steps`` and ``plan`` do that work
once for many runs. The tests compare plans with this function.
"""

from collections.abc import Sequence

import numpy as np

from dist_net.autodiff.arrays import Array
from dist_net.autodiff.expression import Constant, Expression, Variable, View, topological_order
from dist_net.autodiff.operations.fused import defined


def evaluate_naively(outputs: Sequence[Expression], /, **arrays: Array) -> list[Array]:
    """Return the values of ``outputs``; ``arrays`` must have the shapes of the variables."""
    values: dict[int, Array] = {}
    outputs = defined(outputs)
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
