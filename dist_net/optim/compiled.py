"""The update rules in one pass over memory each. Needs the extra ``fast``.

What they compute is defined by the rules' NumPy form, ``update_strip``, to the last bit. Vectors
are float32. ``out`` is none of those that are read, as when a server writes its next snapshot:
in place, LLVM would take one element at a time.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dist_net.compiling import READ, REAL, WRITTEN, Loop, jit

Vector = NDArray[np.float32]


def sgd(weights: Vector, gradient: Vector, out: Vector, rate: float) -> None:
    """w ← w - η g."""
    for i in range(weights.size):
        out[i] = weights[i] - rate * gradient[i]


def momentum(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    rate: float,
    velocity: Vector,
    momentum: float,
    crumb: float,
) -> None:
    """v ← μ v - η g;  w ← w + v."""
    for i in range(weights.size):
        velocity[i] = (momentum * velocity[i] - rate * gradient[i] + crumb) - crumb
        out[i] = weights[i] + velocity[i]


def nesterov(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    rate: float,
    velocity: Vector,
    momentum: float,
    crumb: float,
) -> None:
    """v ← μ v - η g;  w ← w - η g + μ v."""
    for i in range(weights.size):
        change = rate * gradient[i]
        velocity[i] = (momentum * velocity[i] - change + crumb) - crumb
        out[i] = weights[i] - change + momentum * velocity[i]


def adam(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    rate: float,
    mean: Vector,
    mean_square: Vector,
    towards: float,
    towards_square: float,
    epsilon: float,
    crumb: float,
) -> None:
    """Move the means towards g and g², by so much of the way, then w ← w - η m / (√v + ε)."""
    for i in range(weights.size):
        g = gradient[i]
        m = (mean[i] + (g - mean[i]) * towards + crumb) - crumb
        v = (mean_square[i] + (g * g - mean_square[i]) * towards_square + crumb) - crumb
        mean[i] = m
        mean_square[i] = v
        out[i] = weights[i] - m / (math.sqrt(v) + epsilon) * rate


def adagrad(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    rate: float,
    accumulator: Vector,
    epsilon: float,
) -> None:
    """a ← a + g²;  w ← w - η g / √(a + ε)."""
    for i in range(weights.size):
        accumulator[i] += gradient[i] * gradient[i]
        out[i] = weights[i] - gradient[i] / math.sqrt(accumulator[i] + epsilon) * rate


LOOPS = {each.__name__: each for each in (sgd, momentum, nesterov, adam, adagrad)}


@cache
def compiled(name: str, states: int, constants: int) -> Loop:
    """One of ``LOOPS``, for so many vectors of state and constants behind them."""
    return jit(READ, READ, WRITTEN, REAL, *[WRITTEN] * states, *[REAL] * constants)(LOOPS[name])
