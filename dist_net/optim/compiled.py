"""Optimizer steps in one pass over memory. Needs the extra ``fast``.

The loop over elements is vectorised. Its results are bit-identical to the optimizer's ``step``.
Vectors are float32. ``old`` and ``new`` are the optimizer's vectors. No vector is both read and
written, because LLVM does not vectorise in-place loops.
"""

import math
from functools import cache

from numba import types

from dist_net.compiling import READ, REAL, WRITTEN, Loop, jit
from dist_net.vector import Vector

Numbers = tuple[float, ...]
Rows = tuple[Vector, ...]


def sgd(
    w: Vector, g: Vector, out: Vector, factors: Numbers, _old: Rows, _new: Rows, _settings: Numbers
) -> None:
    """w ← w - η g."""
    for i in range(w.size):
        out[i] = w[i] - factors[0] * g[i]


def momentum(
    w: Vector, g: Vector, out: Vector, factors: Numbers, old: Rows, new: Rows, settings: Numbers
) -> None:
    """v ← μ v - η g;  w ← w + v."""
    momentum, crumb = settings
    for i in range(w.size):
        v = (momentum * old[0][i] - factors[0] * g[i] + crumb) - crumb
        new[0][i] = v
        out[i] = w[i] + v


def nesterov(
    w: Vector, g: Vector, out: Vector, factors: Numbers, old: Rows, new: Rows, settings: Numbers
) -> None:
    """v ← μ v - η g;  w ← w - η g + μ v."""
    momentum, crumb = settings
    for i in range(w.size):
        change = factors[0] * g[i]
        v = (momentum * old[0][i] - change + crumb) - crumb
        new[0][i] = v
        out[i] = w[i] - change + momentum * v


def adam(
    w: Vector, g: Vector, out: Vector, factors: Numbers, old: Rows, new: Rows, settings: Numbers
) -> None:
    """Move the means towards g and g²; w ← w - d w if there is a decay d, then - η m / (√v + ε)."""
    towards, towards_square, epsilon, crumb = settings
    has_decay = len(factors) > 1  # known when the loop is compiled
    for i in range(w.size):
        weight = w[i]
        if has_decay:
            weight -= weight * factors[1]
        m = (old[0][i] + (g[i] - old[0][i]) * towards + crumb) - crumb
        v = (old[1][i] + (g[i] * g[i] - old[1][i]) * towards_square + crumb) - crumb
        new[0][i] = m
        new[1][i] = v
        out[i] = weight - m / (math.sqrt(v) + epsilon) * factors[0]


def adagrad(
    w: Vector, g: Vector, out: Vector, factors: Numbers, old: Rows, new: Rows, settings: Numbers
) -> None:
    """a ← a + g²;  w ← w - η g / √(a + ε)."""
    for i in range(w.size):
        a = old[0][i] + g[i] * g[i]
        new[0][i] = a
        out[i] = w[i] - g[i] / math.sqrt(a + settings[0]) * factors[0]


def rmsprop(
    w: Vector, g: Vector, out: Vector, factors: Numbers, old: Rows, new: Rows, settings: Numbers
) -> None:
    """Move the mean towards g² by the given factor, then w ← w - η g / √(v + ε)."""
    towards, epsilon, crumb = settings
    for i in range(w.size):
        v = (old[0][i] + (g[i] * g[i] - old[0][i]) * towards + crumb) - crumb
        new[0][i] = v
        out[i] = w[i] - g[i] / math.sqrt(v + epsilon) * factors[0]


LOOPS = {each.__name__: each for each in (sgd, momentum, nesterov, adam, adagrad, rmsprop)}


@cache
def compiled(name: str, factors: int, vectors: int, constants: int) -> Loop:
    """Compile one of ``LOOPS``; ``factors``: 1, the rate, or 2, with a decay."""
    old, new = (types.Tuple([each] * vectors) for each in (READ, WRITTEN))
    rates, settings = (types.Tuple([REAL] * count) for count in (factors, constants))
    return jit(READ, READ, WRITTEN, rates, old, new, settings)(LOOPS[name])
