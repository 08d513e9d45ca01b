"""The epilogue of a convolution, of a vector of its result. Needs the extra ``fast``."""

import math

import numpy as np
from numba.types import Tuple, UniTuple
from numpy.lib.stride_tricks import as_strided

from dist_net.autodiff.arrays import Array
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    Flat,
    Four,
    Lanes,
    Pointer,
    changed_if,
    integers,
    larger,
    load,
    smaller,
    spread,
    store,
    traced,
)
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Epilogue, Problem
from dist_net.autodiff.kernels.windows import Windows
from dist_net.ground.compiling import BOOLEAN, READ, REAL, WRITTEN

Geometry = tuple[int, int, int, int, int, int]


def geometry(windows: Windows, first_row: int) -> Geometry:
    """Return the size and stride of windows, and the start of the window of ``first_row``."""
    top = first_row * windows.stride[0] - windows.padding[0][0]
    return *windows.size, *windows.stride, top, -windows.padding[1][0]


def flat(array: Array) -> Array:
    return array.reshape(array.size, copy=False)


def memory_of(view: Array) -> Array:
    """Return a flat view of all memory from the first value of a view to the last."""
    last = sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
    return as_strided(view, (last // view.itemsize + 1,), (view.itemsize,))


EpilogueNumbers = tuple[np.float32, ...]
"""The slope and the least value before and after the residual, low and high."""
OfBlock = tuple[Flat, Flat, bool, Flat, EpilogueNumbers, Four]
"""The output, the residual and whether there is one, the bias, the numbers, and the place: an
offset in the output, and the strides of images, rows and pixels, in values."""
NUMBERS = UniTuple(REAL, 6)
EPILOGUE = Tuple((WRITTEN, READ, BOOLEAN, READ, NUMBERS, integers(4)))


def epilogue_of(problem: Problem, block: Block, arrays: Arrays) -> OfBlock:
    _, height, width, channels = problem.out
    has_residual = arrays.residual is not None
    residual = flat(arrays.residual) if arrays.residual is not None else arrays.bias
    numbers = numbers_of(problem.epilogue)
    per_row = width * channels
    start = (block.images.start * height + block.rows.start) * per_row + block.channels.start
    place = start, height * per_row, per_row, channels
    bias = arrays.bias[block.channels]
    return flat(arrays.out), residual, has_residual, bias, numbers, place


def numbers_of(epilogue: Epilogue) -> EpilogueNumbers:
    """Return the numbers of an epilogue. Relu is a least value, since -inf · 0 is not 0."""
    slopes = epilogue.slope, epilogue.residual_slope
    pairs = [(slope, -math.inf) if slope else (1.0, 0.0) for slope in slopes]
    numbers = *pairs[0], *pairs[1], epilogue.low, epilogue.high
    return tuple(np.float32(each) for each in numbers)


EpilogueValues = tuple[Lanes, Pointer, bool, EpilogueNumbers]
"""Bias, residual, whether there is one, and the numbers."""


@traced()
def apply_epilogue(
    value: Lanes, out: Pointer, place: int, epilogue: EpilogueValues, lanes: int = LANES
) -> None:
    """Write the epilogue of one vector to ``place``."""
    bias, residual, has_residual, numbers = epilogue
    slope, least, residual_slope, residual_least, low, high = (
        spread(each, lanes) for each in numbers
    )

    def with_residual(value: Lanes) -> Lanes:
        total = value + load(residual, place, lanes)
        return larger(larger(total, total * residual_slope), residual_least)

    value = value + bias
    value = larger(larger(value, value * slope), least)
    value = changed_if(has_residual, with_residual, value)
    store(out, place, smaller(larger(value, low), high))
