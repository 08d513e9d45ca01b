"""Optimizer steps along several gradients in one pass over memory. Needs the extra ``fast``.

Each loop is compiled for a fixed number of gradients: the loop over gradients is unrolled and the
loop over elements is vectorised. Its results are bit-identical to the optimizer's ``step``. It
returns False if a number leaves the valid range; the caller then discards the step.

Vectors are float32. No vector is both read and written, because LLVM does not vectorise in-place
loops. The next state goes to separate vectors, so a discarded step leaves the state intact.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba.types import UniTuple

from dist_net.compiling import BOOLEAN, READ, REAL, WRITTEN, Loop, jit
from dist_net.optim.ranges import TOO_LARGE
from dist_net.vector import Vector, Vectors

Rates = tuple[float, ...]

LIMIT = np.float32(TOO_LARGE)
INFINITE = np.float32(math.inf)


def sgd(weights: Vector, gradients: Vectors, out: Vector, rates: Rates) -> bool:
    """w ← w - η g."""
    is_finite = True
    for i in range(weights.size):
        w = weights[i]
        for k in range(len(gradients)):
            w -= rates[k] * gradients[k][i]
        out[i] = w
        is_finite &= abs(w) < LIMIT
    return is_finite


def momentum(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    velocity: Vector,
    next_velocity: Vector,
    momentum: float,
    crumb: float,
) -> bool:
    """v ← μ v - η g;  w ← w + v."""
    is_finite = True
    for i in range(weights.size):
        w = weights[i]
        v = velocity[i]
        for k in range(len(gradients)):
            v = (momentum * v - rates[k] * gradients[k][i] + crumb) - crumb
            w += v
        next_velocity[i] = v
        out[i] = w
        is_finite &= abs(w) < LIMIT  # infinite if the velocity is
    return is_finite


def nesterov(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    velocity: Vector,
    next_velocity: Vector,
    momentum: float,
    crumb: float,
) -> bool:
    """v ← μ v - η g;  w ← w - η g + μ v."""
    is_finite = True
    for i in range(weights.size):
        w = weights[i]
        v = velocity[i]
        for k in range(len(gradients)):
            change = rates[k] * gradients[k][i]
            v = (momentum * v - change + crumb) - crumb
            w = w - change + momentum * v
        next_velocity[i] = v
        out[i] = w
        is_finite &= abs(w) < LIMIT  # infinite if the velocity is
    return is_finite


def adam(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    mean: Vector,
    mean_square: Vector,
    next_mean: Vector,
    next_mean_square: Vector,
    towards: float,
    towards_square: float,
    epsilon: float,
    crumb: float,
) -> bool:
    """Move the means towards g and g² by the given factors, then w ← w - η m / (√v + ε).

    If ``rates`` also holds a decay d for each gradient, w ← w - d w comes first.
    """
    has_decay = len(rates) > len(gradients)  # known when the loop is compiled
    is_finite = True
    for i in range(weights.size):
        w = weights[i]
        m = mean[i]
        v = mean_square[i]
        for k in range(len(gradients)):
            g = gradients[k][i]
            if has_decay:
                w -= w * rates[len(gradients) + k]
            m = (m + (g - m) * towards + crumb) - crumb
            v = (v + (g * g - v) * towards_square + crumb) - crumb
            w -= m / (math.sqrt(v) + epsilon) * rates[k]
        next_mean[i] = m
        next_mean_square[i] = v
        out[i] = w
        is_finite &= (abs(w) < LIMIT) & (v < INFINITE)  # v is never negative
    return is_finite


def adagrad(
    weights: Vector,
    gradients: Vectors,
    out: Vector,
    rates: Rates,
    accumulator: Vector,
    next_accumulator: Vector,
    epsilon: float,
) -> bool:
    """a ← a + g²;  w ← w - η g / √(a + ε)."""
    is_finite = True
    for i in range(weights.size):
        w = weights[i]
        a = accumulator[i]
        for k in range(len(gradients)):
            g = gradients[k][i]
            a += g * g
            w -= g / math.sqrt(a + epsilon) * rates[k]
        next_accumulator[i] = a
        out[i] = w
        is_finite &= (abs(w) < LIMIT) & (a < INFINITE)
    return is_finite


LOOPS = {each.__name__: each for each in (sgd, momentum, nesterov, adam, adagrad)}


@cache
def compiled(name: str, gradients: int, factors: int, states: int, constants: int) -> Loop:
    """Compile one of ``LOOPS``; ``factors`` is the number of rates and decays per gradient."""
    several = (UniTuple(READ, gradients), WRITTEN, UniTuple(REAL, factors * gradients))
    arguments = (READ, *several, *[READ] * states, *[WRITTEN] * states, *[REAL] * constants)
    return jit(*arguments, result=BOOLEAN)(LOOPS[name])
