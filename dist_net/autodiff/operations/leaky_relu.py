"""The leaky relu, max(x, slope · x), and its gradient, which takes fewer passes over memory than
the gradients of a maximum and a product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from dist_net.autodiff.arrays import Array, Call, in_order
from dist_net.autodiff.expression import FLOATS, Expression, apply
from dist_net.autodiff.operations.elementwise import (
    Derivatives,
    Elementwise,
    greater,
)
from dist_net.autodiff.operations.selection import where
from dist_net.errors import ParameterError

STRIP_ELEMENTS = 1 << 17  # as large as the strips that threads share


@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """x if x > 0, else ``slope`` · x, for a slope from 0 (relu) to 1."""

    slope: float
    kinds = FLOATS
    overwrites_inputs = False

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (x,) = inputs
        if self.slope == 0:  # 0 · infinity would be nan
            return partial(np.maximum, x, out.dtype.type(0), out=out)
        scale = partial(np.multiply, x, out.dtype.type(self.slope), out)
        return in_order([scale, partial(np.maximum, x, out, out=out)])

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        if self.slope == 0:
            return (where(greater(y, 0.0), g, 0.0),)
        return (apply(LeakyReluGradient(self.slope), g, y),)


@dataclass(frozen=True)
class LeakyReluGradient(Elementwise):
    """g if y > 0, else ``slope`` · g."""

    slope: float
    kinds = FLOATS
    overwrites_inputs = False

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        arrays = [*inputs, out]
        if any(each.shape != out.shape or not each.flags.c_contiguous for each in arrays):
            return in_order(self._calls(*arrays))
        flat = [each.reshape(-1, copy=False) for each in arrays]
        edges = [*range(0, out.size, STRIP_ELEMENTS), out.size]
        strips = [[each[start:stop] for each in flat] for start, stop in pairwise(edges)]
        return in_order([call for strip in strips for call in self._calls(*strip)])

    def _calls(self, g: Array, y: Array, out: Array) -> list[Call]:
        number = out.dtype.type
        return [
            partial(np.greater, y, number(0), out),  # 1 or 0, in the dtype of ``out``
            partial(np.multiply, out, number(1 - self.slope), out),
            partial(np.add, out, number(self.slope), out),
            partial(np.multiply, out, g, out),
        ]

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        return apply(self, g, x[1]), None


def leaky_relu(x: Expression, slope: float = 0.1) -> Expression:
    """Return x if x > 0, else ``slope`` · x, for a slope from 0 to 1; Darknet's is 0.1.

    The derivative at 0 is the slope. Raise ``ParameterError`` for another slope, ``DTypeError``
    unless x is a float.
    """
    if not 0 <= slope <= 1:
        raise ParameterError(f"leaky_relu: slope {slope}; expected 0 <= slope <= 1")
    return apply(LeakyRelu(slope), x)
