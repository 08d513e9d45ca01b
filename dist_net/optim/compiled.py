"""The update rules in one pass over memory, however many gradients. Needs the extra ``fast``.

Each is compiled for a number of gradients, so that the loop over them is unrolled, and that over
the elements takes a register full at a time. What they compute is defined by the rules' NumPy form,
``update_strip``, to the last bit. Vectors are float32. ``out`` is none of those that are read, as
when a server writes its next snapshot: in place, LLVM would take one element at a time.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import types
from numba.types import UniTuple
from numpy.typing import NDArray

from dist_net.compiling import BOOLEAN, READ, REAL, WRITTEN, Loop, jit

Vector = NDArray[np.float32]
Vectors = tuple[Vector, ...]
Rates = tuple[float, ...]

LARGEST = np.sqrt(np.finfo(np.float32).max)
"""Whose square does not overflow; what is beyond counts as infinite, as in ``is_finite``."""


def sgd(weights: Vector, gradients: Vectors, out: Vector, rates: Rates) -> bool:
    """w ← w - η g. Whether all that it gives is finite."""
    is_finite = True
    for i in range(weights.size):
        w = weights[i]
        for k in range(len(gradients)):
            w -= rates[k] * gradients[k][i]
        out[i] = w
        is_finite &= abs(w) <= LARGEST
    return is_finite


def momentum(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    velocity: Vector,
    momentum: float,
    crumb: float,
) -> None:
    """v ← μ v - η g;  w ← w + v."""
    for i in range(weights.size):
        w = weights[i]
        v = velocity[i]
        for k in range(len(gradients)):
            v = (momentum * v - rates[k] * gradients[k][i] + crumb) - crumb
            w += v
        velocity[i] = v
        out[i] = w


def nesterov(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    velocity: Vector,
    momentum: float,
    crumb: float,
) -> None:
    """v ← μ v - η g;  w ← w - η g + μ v."""
    for i in range(weights.size):
        w = weights[i]
        v = velocity[i]
        for k in range(len(gradients)):
            change = rates[k] * gradients[k][i]
            v = (momentum * v - change + crumb) - crumb
            w = w - change + momentum * v
        velocity[i] = v
        out[i] = w


def adam(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    mean: Vector,
    mean_square: Vector,
    towards: float,
    towards_square: float,
    epsilon: float,
    crumb: float,
) -> None:
    """Move the means towards g and g², by so much of the way, then w ← w - η m / (√v + ε)."""
    for i in range(weights.size):
        w = weights[i]
        m = mean[i]
        v = mean_square[i]
        for k in range(len(gradients)):
            g = gradients[k][i]
            m = (m + (g - m) * towards + crumb) - crumb
            v = (v + (g * g - v) * towards_square + crumb) - crumb
            w -= m / (math.sqrt(v) + epsilon) * rates[k]
        mean[i] = m
        mean_square[i] = v
        out[i] = w


def adagrad(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    accumulator: Vector,
    epsilon: float,
) -> None:
    """a ← a + g²;  w ← w - η g / √(a + ε)."""
    for i in range(weights.size):
        w = weights[i]
        a = accumulator[i]
        for k in range(len(gradients)):
            g = gradients[k][i]
            a += g * g
            w -= g / math.sqrt(a + epsilon) * rates[k]
        accumulator[i] = a
        out[i] = w


LOOPS = {each.__name__: each for each in (sgd, momentum, nesterov, adam, adagrad)}


@cache
def compiled(name: str, gradients: int, states: int, constants: int) -> Loop:
    """One of ``LOOPS``, for so many gradients, vectors of state, and constants behind them.

    Without state it gives whether the result is finite: that is then a reason not to use it.
    """
    several = (UniTuple(READ, gradients), WRITTEN, UniTuple(REAL, gradients))
    arguments = (READ, *several, *[WRITTEN] * states, *[REAL] * constants)
    return jit(*arguments, result=types.void if states else BOOLEAN)(LOOPS[name])
