"""Softmax, layer norm and gelu, and their gradients, each in one pass over memory.

Needs the extra ``fast``. All arrays are flat. A row has ``columns`` values, a multiple of
``LANES``, and stays in the L1 cache while the loops read it several times.
"""

import math
from collections.abc import Callable
from functools import partial
from operator import add
from typing import NamedTuple

import numpy as np

from dist_net.autodiff.kernels.compiled import ERF
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    Flat,
    Lanes,
    Pointer,
    across,
    larger,
    load,
    multiply_add,
    pointer,
    power_of_two,
    repeated,
    run_chosen,
    smaller,
    spread,
    square_root,
    store,
    traced,
)
from dist_net.ground.compiling import INTEGER, READ, REAL, WRITTEN, jit

# exp(x) = 2^k · exp(r) for the whole number k next to x / log 2; a polynomial is exp(r) (Cephes).
EXP: tuple[float, ...] = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2)
EXP += (1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)
LOG_2 = 0.693359375, -2.12194440e-4  # the sum has more digits than a float32
LOWEST = -87.0  # at this value and below, the exponential is 0
HIGHEST = 89.0  # at this value, the exponent is that of infinity
TO_WHOLE = 1.5 * 2**23  # adding it rounds to a whole number
ZERO = np.float32(0)


def exponential(x: Lanes) -> Lanes:
    """Return exp(x), and infinity for x > 88.4; nan stays nan."""
    limited = larger(smaller(x, HIGHEST), LOWEST)
    exponent = limited * (1 / math.log(2)) + TO_WHOLE - TO_WHOLE
    rest = limited - exponent * LOG_2[0] - exponent * LOG_2[1]
    value = rest * EXP[0] + EXP[1]
    for coefficient in EXP[2:]:
        value = multiply_add(value, rest, coefficient)
    is_positive = larger(smaller((x - LOWEST) * 1e30, 1.0), 0.0)
    return value * power_of_two(exponent) * is_positive


def normal_probability(x: Lanes) -> Lanes:
    """Return Φ(x), the probability that a normally distributed number is less than x."""
    x = x * math.sqrt(0.5)
    square = x * x
    value = square * ERF[-1] + ERF[-2]
    for coefficient in ERF[-3::-1]:
        value = multiply_add(value, square, coefficient)
    # (1 + tanh(value · x)) / 2, but without rounding a small probability to 0.
    return 1.0 / (exponential(value * x * -2.0) + 1.0)


class RowOfArrays(NamedTuple):
    """A row: functions that load a vector of each array at a place, and numbers as vectors.

    ``given`` is the cotangent of the result. ``share`` is 1 / columns.
    """

    x: Callable[[int], Lanes]
    given: Callable[[int], Lanes]
    out: Callable[[int], Lanes]
    store: Callable[[int, Lanes], None]
    columns: int
    zero: Lanes
    share: Lanes
    epsilon: Lanes

    def over_places(self, step: Callable[[int, Lanes], Lanes], total: Lanes) -> Lanes:
        """Return the total after ``total = step(k, total)`` for each place."""
        return repeated(self.columns, lambda k, total: (step(k, total),), total, by=LANES)[0]

    def sum(self, term: Callable[[int], Lanes]) -> Lanes:
        return across(self.over_places(lambda k, total: total + term(k), self.zero), add)

    def fill(self, value: Callable[[int], Lanes]) -> None:
        repeated(self.columns, lambda k: self.store(k, value(k)), by=LANES)

    def moments(self) -> tuple[Lanes, Lanes]:
        """Return the mean of x and √(variance + epsilon)."""
        center = self.sum(self.x) * self.share
        variance = self.sum(lambda k: (self.x(k) - center) * (self.x(k) - center)) * self.share
        return center, square_root(variance + self.epsilon)


def gelu(row: RowOfArrays) -> None:
    row.fill(lambda k: row.x(k) * normal_probability(row.x(k)))


def gelu_gradient(row: RowOfArrays) -> None:
    def slope(x: Lanes) -> Lanes:
        density = exponential(x * x * -0.5) * (2 * math.pi) ** -0.5
        return x * density + normal_probability(x)

    row.fill(lambda k: slope(row.x(k)) * row.given(k))


def softmax(row: RowOfArrays) -> None:
    highest = row.over_places(lambda k, top: larger(top, row.x(k)), row.x(0))
    highest = across(highest, larger)
    row.fill(lambda k: exponential(row.x(k) - highest))
    total = row.sum(row.out)
    row.fill(lambda k: row.out(k) / total)


def softmax_gradient(row: RowOfArrays) -> None:
    """Use the result as ``x``."""
    total = row.sum(lambda k: row.x(k) * row.given(k))
    row.fill(lambda k: (row.given(k) - total) * row.x(k))


def standardize(row: RowOfArrays) -> None:
    center, deviation = row.moments()
    row.fill(lambda k: (row.x(k) - center) / deviation)


def standardize_gradient(row: RowOfArrays) -> None:
    def normal(k: int) -> Lanes:
        return (row.x(k) - center) / deviation

    center, deviation = row.moments()
    mean = row.sum(row.given) * row.share
    along = row.sum(lambda k: row.given(k) * normal(k)) * row.share
    row.fill(lambda k: (row.given(k) - mean - normal(k) * along) / deviation)


FUNCTIONS = gelu, gelu_gradient, softmax, softmax_gradient, standardize, standardize_gradient


@traced()
def write_row(
    function: int,
    arrays: tuple[Pointer, Pointer, Pointer],
    i: int,
    columns: int,
    numbers: tuple[Lanes, Lanes, Lanes],
) -> None:
    x, given, out = (lambda k, source=each: load(source, i + k) for each in arrays)
    row = RowOfArrays(
        x, given, out, lambda k, value: store(arrays[2], i + k, value), columns, *numbers
    )
    run_chosen(function, {n: partial(each, row) for n, each in enumerate(FUNCTIONS)})


@jit(INTEGER, READ, READ, WRITTEN, INTEGER, REAL)
def compute_rows(
    function: int, x: Flat, given: Flat, out: Flat, columns: int, epsilon: float
) -> None:
    """Write a function of each row, whose place in ``FUNCTIONS`` is ``function``."""
    arrays = pointer(x), pointer(given), pointer(out)
    numbers = spread(ZERO), spread(np.float32(1 / columns)), spread(epsilon)
    for i in range(0, len(out), columns):
        write_row(function, arrays, i, columns, numbers)
