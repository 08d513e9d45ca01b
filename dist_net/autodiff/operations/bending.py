"""What flows back through max(x, slope · x), a leaky relu, in one pass instead of a mask of either
side, each side's share, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from dist_net.autodiff.expression import (
    Array,
    Constant,
    Expression,
    Kernel,
    Operand,
    apply,
    in_order,
)
from dist_net.autodiff.operations.broadcasting import operands
from dist_net.autodiff.operations.elementwise import Elementwise, Multiply

STRIP_ELEMENTS = 1 << 17  # as large as the strips that threads share


@dataclass(frozen=True)
class Bend(Elementwise):
    """g where y is above 0, ``slope`` times g elsewhere."""

    slope: float
    kinds = "f"
    overwrites_inputs = False

    def kernel(self, inputs: Sequence[Array], out: Array) -> Kernel:
        arrays = [*inputs, out]
        if any(each.shape != out.shape or not each.flags.c_contiguous for each in arrays):
            return in_order(self._calls(*arrays))
        flat = [each.reshape(-1, copy=False) for each in arrays]
        edges = [*range(0, out.size, STRIP_ELEMENTS), out.size]
        strips = [[each[start:stop] for each in flat] for start, stop in pairwise(edges)]
        return in_order([call for strip in strips for call in self._calls(*strip)])

    def _calls(self, g: Array, y: Array, out: Array) -> list[Kernel]:
        number = out.dtype.type
        return [
            partial(np.greater, y, number(0), out),  # 1 or 0, in the dtype of ``out``
            partial(np.multiply, out, number(1 - self.slope), out),
            partial(np.add, out, number(self.slope), out),
            partial(np.multiply, out, g, out),
        ]

    def derivatives(
        self, y: Expression, g: Expression, *x: Expression
    ) -> tuple[Expression | None, ...]:
        return apply(self, g, x[1]), None


def bend(g: Operand, y: Operand, slope: float) -> Expression:
    """g where y is above 0, ``slope`` times g elsewhere."""
    return apply(Bend(slope), *operands(g, y))


def slope_between(x: Expression, scaled: Expression) -> float | None:
    """c if ``scaled`` is x · c with a constant c from 0 up to, but not, 1."""
    if isinstance(scaled.operation, Multiply):
        for node, factor in (scaled.inputs, scaled.inputs[::-1]):
            if node is x and isinstance(factor.operation, Constant) and factor.shape == ():
                slope = float(factor.operation.value.item())
                return slope if 0 <= slope < 1 else None
    return None
