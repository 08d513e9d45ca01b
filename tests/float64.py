"""The same graph in float64: what float32 is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dist_net.autodiff.expression import (
    Constant,
    Expression,
    Variable,
    apply,
    constant,
    topological_order,
    variable,
)
from dist_net.autodiff.operations.elementwise import AsType

SINGLE = np.dtype(np.float32)


def in_float64(outputs: Sequence[Expression]) -> list[Expression]:
    """``outputs`` with float64 wherever float32 was: variables, constants, and what follows.

    The variables keep their names, and their arrays are to be given as float64.
    """
    doubled: dict[int, Expression] = {}
    for node in topological_order(outputs):
        doubled[id(node)] = _doubled(node, [doubled[id(each)] for each in node.inputs])
    return [doubled[id(each)] for each in outputs]


def _doubled(node: Expression, inputs: Sequence[Expression]) -> Expression:
    match node.operation:
        case Variable(name) if node.dtype == SINGLE:
            return variable(name, node.shape, np.float64)
        case Constant(value) if node.dtype == SINGLE:
            return constant(value, np.float64)
        case Variable() | Constant():
            return node
        case AsType(dtype) if dtype == SINGLE:
            return apply(AsType(np.dtype(np.float64)), *inputs)
        case operation:
            return apply(operation, *inputs)
