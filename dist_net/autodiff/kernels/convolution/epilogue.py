"""Epilogues: apply bias, activation and residual while a convolution's result is in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call

LINEAR = 1.0


@dataclass(frozen=True)
class Epilogue:
    """y = max(x + bias, slope · (x + bias)); with a residual, then the same for y + residual.

    A slope of 1 is the identity, 0 is relu, 0.1 is Darknet's leaky relu. The result is clipped to
    ``low`` and ``high``.
    """

    slope: float = LINEAR
    residual_slope: float = LINEAR
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether the result is clipped."""
        return self.low > -math.inf or self.high < math.inf

    def calls(
        self, values: Array, bias: Array | None, residual: Array | None, out: Array, spare: Array
    ) -> Sequence[Call]:
        """Return the calls that turn ``values`` into ``out``, which may be the same memory.

        ``values`` are overwritten; ``spare`` is memory of the same shape. All are (..., C);
        ``bias`` is (C,), or None if it has already been added.
        """
        calls: list[partial[object]] = []
        if bias is not None:
            calls.append(partial(np.add, values, bias, out=values))
        calls += _leaky_relu(self.slope, values, spare)
        if residual is not None:
            calls.append(partial(np.add, values, residual, out=values))
            calls += _leaky_relu(self.residual_slope, values, spare)
        if self.clips:
            low, high = values.dtype.type(self.low), values.dtype.type(self.high)
            calls.append(partial(np.clip, values, low, high, out=values))
        return _ending_in(out, calls, values)


def _leaky_relu(slope: float, values: Array, spare: Array) -> list[partial[object]]:
    if slope == LINEAR:
        return []
    if slope == 0.0:
        return [partial(np.maximum, values, values.dtype.type(0), out=values)]
    return [
        partial(np.multiply, values, values.dtype.type(slope), out=spare),
        partial(np.maximum, values, spare, out=values),
    ]


def _ending_in(out: Array, calls: list[partial[object]], values: Array) -> list[Call]:
    """Return ``calls`` with the last one writing to ``out``; a copy to ``out`` if empty."""
    if not calls:
        return [partial(np.copyto, out, values)]
    *before, last = calls
    return [*before, partial(last.func, *last.args, out=out)]
