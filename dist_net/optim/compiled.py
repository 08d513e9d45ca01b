"""Optimizer steps in one pass over memory. Needs the extra ``fast``.

The loop over elements is vectorised. Its results are bit-identical to the optimizer's ``step``.
Vectors are float32. No vector is both read and written, because LLVM does not vectorise in-place
loops.
"""

from __future__ import annotations

import math
from functools import cache

from numba.types import UniTuple

from dist_net.compiling import READ, REAL, WRITTEN, Loop, jit
from dist_net.vector import Vector

Factors = tuple[float, ...]


def sgd(weights: Vector, gradient: Vector, out: Vector, factors: Factors) -> None:
    """w ← w - η g."""
    for i in range(weights.size):
        out[i] = weights[i] - factors[0] * gradient[i]


def momentum(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    factors: Factors,
    velocity: Vector,
    next_velocity: Vector,
    momentum: float,
    crumb: float,
) -> None:
    """v ← μ v - η g;  w ← w + v."""
    for i in range(weights.size):
        v = (momentum * velocity[i] - factors[0] * gradient[i] + crumb) - crumb
        next_velocity[i] = v
        out[i] = weights[i] + v


def nesterov(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    factors: Factors,
    velocity: Vector,
    next_velocity: Vector,
    momentum: float,
    crumb: float,
) -> None:
    """v ← μ v - η g;  w ← w - η g + μ v."""
    for i in range(weights.size):
        change = factors[0] * gradient[i]
        v = (momentum * velocity[i] - change + crumb) - crumb
        next_velocity[i] = v
        out[i] = weights[i] - change + momentum * v


def adam(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    factors: Factors,
    mean: Vector,
    mean_square: Vector,
    next_mean: Vector,
    next_mean_square: Vector,
    towards: float,
    towards_square: float,
    epsilon: float,
    crumb: float,
) -> None:
    """Move the means towards g and g² by the given factors, then w ← w - η m / (√v + ε).

    If ``factors`` also holds a decay d, w ← w - d w comes first.
    """
    has_decay = len(factors) > 1  # known when the loop is compiled
    for i in range(weights.size):
        g = gradient[i]
        w = weights[i]
        if has_decay:
            w -= w * factors[1]
        m = (mean[i] + (g - mean[i]) * towards + crumb) - crumb
        v = (mean_square[i] + (g * g - mean_square[i]) * towards_square + crumb) - crumb
        next_mean[i] = m
        next_mean_square[i] = v
        out[i] = w - m / (math.sqrt(v) + epsilon) * factors[0]


def adagrad(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    factors: Factors,
    accumulator: Vector,
    next_accumulator: Vector,
    epsilon: float,
) -> None:
    """a ← a + g²;  w ← w - η g / √(a + ε)."""
    for i in range(weights.size):
        g = gradient[i]
        a = accumulator[i] + g * g
        next_accumulator[i] = a
        out[i] = weights[i] - g / math.sqrt(a + epsilon) * factors[0]


def rmsprop(
    weights: Vector,
    gradient: Vector,
    out: Vector,
    factors: Factors,
    mean_square: Vector,
    next_mean_square: Vector,
    towards: float,
    epsilon: float,
    crumb: float,
) -> None:
    """Move the mean towards g² by the given factor, then w ← w - η g / √(v + ε)."""
    for i in range(weights.size):
        g = gradient[i]
        v = (mean_square[i] + (g * g - mean_square[i]) * towards + crumb) - crumb
        next_mean_square[i] = v
        out[i] = weights[i] - g / math.sqrt(v + epsilon) * factors[0]


LOOPS = {each.__name__: each for each in (sgd, momentum, nesterov, adam, adagrad, rmsprop)}


@cache
def compiled(name: str, factors: int, states: int, constants: int) -> Loop:
    """Compile one of ``LOOPS``; ``factors``: 1, the rate, or 2, with a decay."""
    vectors = (READ, READ, WRITTEN, UniTuple(REAL, factors))
    arguments = (*vectors, *[READ] * states, *[WRITTEN] * states, *[REAL] * constants)
    return jit(*arguments)(LOOPS[name])
