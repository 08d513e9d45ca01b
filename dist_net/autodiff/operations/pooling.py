"""Pooling: the largest element, or the mean, of each window of a map (N, H, W, C).

A window is pooled along one axis and then along the other: the maximum of the maxima of its rows,
or the sum of their sums. That is less work than pooling all elements at once, and the gradient
uses the intermediate results. Padding is never the largest element and is excluded from the mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import (
    FLOATS,
    Expression,
    SharedOperation,
    apply,
    constant,
    require_map,
    same_dtype,
)
from dist_net.autodiff.kernels.thread_pool import ThreadPool, by_strip
from dist_net.autodiff.kernels.windows import AxisWindows, Padding, Pair, windows
from dist_net.autodiff.operations.elementwise import astype, equal
from dist_net.autodiff.operations.reduction import broadcast_to
from dist_net.autodiff.operations.shaping import zeros_around
from dist_net.errors import ShapeError


@dataclass(frozen=True)
class AxisWindowsOperation(SharedOperation):
    """An operation on windows along one axis, computed for a strip of images at a time."""

    windows: AxisWindows

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        (x,) = inputs
        return by_strip(out, 0, lambda strip, _: self._strip_calls(x[strip], out[strip]), pool)

    def _strip_calls(self, x: Array, out: Array) -> Sequence[Call]:
        raise NotImplementedError


@dataclass(frozen=True)
class WindowReduction(AxisWindowsOperation):
    """The elements of each window, reduced by ``ufunc``; ``of_none`` for an empty window."""

    ufunc: ClassVar[np.ufunc]
    of_none: ClassVar[float]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        return self.windows.resized(x.shape, self.windows.results), x.dtype

    def _strip_calls(self, x: Array, out: Array) -> Sequence[Call]:
        windows, everywhere = self.windows, slice(0, self.windows.results)
        taps = windows.taps()
        whole = [windows.of(x, elements) for where, elements in taps if where == everywhere]
        if len(whole) > 1:
            calls: list[Call] = [partial(self.ufunc, whole[0], whole[1], out=out)]
        elif whole:
            calls = [partial(np.copyto, out, whole[0])]
        else:
            calls = [partial(out.fill, self.of_none)]
        calls += [partial(self.ufunc, out, each, out=out) for each in whole[2:]]
        for where, elements in taps:
            if where != everywhere:
                target = windows.of(out, where)
                calls.append(partial(self.ufunc, target, windows.of(x, elements), out=target))
        return calls


@dataclass(frozen=True)
class WindowSum(WindowReduction):
    """The sum of each window."""

    ufunc = np.add
    of_none = 0.0

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowSumGradient(self.windows), cotangent),)


@dataclass(frozen=True)
class WindowSumGradient(AxisWindowsOperation):
    """For each element, the sum over the windows that contain it."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (cotangent,) = inputs
        return self.windows.resized(cotangent.shape, self.windows.length), cotangent.dtype

    def _strip_calls(self, x: Array, out: Array) -> Sequence[Call]:
        calls: list[Call] = [] if self.windows.is_partition else [partial(out.fill, 0)]
        for where, elements in self.windows.taps():
            target, source = self.windows.of(out, elements), self.windows.of(x, where)
            if self.windows.overlaps:
                calls.append(partial(np.add, target, source, target))
            else:
                calls.append(partial(np.copyto, target, source))
        return calls

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowSum(self.windows), cotangent),)


@dataclass(frozen=True)
class WindowMaximum(WindowReduction):
    """The largest element of each window; if several tie, the first receives the gradient."""

    ufunc = np.maximum
    of_none = -math.inf

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowMaximumGradient(self.windows), *node.inputs, node, cotangent),)


@dataclass(frozen=True)
class WindowMaximumGradient(AxisWindowsOperation):
    """Each window's cotangent at its first maximum. Inputs: the map, its maxima, cotangents."""

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, maxima, cotangent = inputs
        # The usual case, two elements: the second receives the gradient unless the first does.
        is_of_two = self.windows.is_partition and len(self.windows.taps()) == 2
        through = self._of_two if is_of_two else self._of_many

        def calls(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            return through(x[strip], maxima[strip], cotangent[strip], out[strip], *spare)

        return by_strip(maxima, 1 if is_of_two else 3, calls, pool)

    def _of_two(
        self, x: Array, maxima: Array, cotangent: Array, out: Array, hit: Array
    ) -> Sequence[Call]:
        (_, first), (where, second) = self.windows.taps()
        of = self.windows.of
        share = of(out, first)
        return [
            partial(np.equal, of(x, first), maxima, hit),
            partial(np.multiply, cotangent, hit, share),
            partial(np.subtract, of(cotangent, where), of(share, where), of(out, second)),
        ]

    def _of_many(
        self, x: Array, maxima: Array, cotangent: Array, out: Array, *spare: Array
    ) -> Sequence[Call]:
        """Assign each window's cotangent to its first maximum, position by position."""
        windows, (hit, left, share) = self.windows, spare
        calls: list[Call] = [partial(np.copyto, left, cotangent), partial(out.fill, 0)]
        for where, elements in windows.taps():
            hits, shares, rest = (windows.of(each, where) for each in (hit, share, left))
            target = windows.of(out, elements)
            calls += [
                partial(np.equal, windows.of(x, elements), windows.of(maxima, where), hits),
                partial(np.multiply, rest, hits, shares),
                partial(np.subtract, rest, shares, rest),
                partial(np.add, target, shares, target),
            ]
        return calls

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, maxima, _ = node.inputs
        # For each window of x, the element of the cotangent at its first maximum.
        taken = found = broadcast_to(constant(0.0, x.dtype), maxima.shape)
        for where, elements in self.windows.taps():
            window, element = self.windows.index(where), self.windows.index(elements)
            hits = astype(equal(x[element], maxima[window]), x.dtype)
            hits = hits * (1.0 - taken[window])
            taken = taken + zeros_around(hits, maxima.shape, window)
            found = found + zeros_around(hits * cotangent[element], maxima.shape, window)
        return None, None, found


def max_pool(
    x: Expression, size: int | Pair, stride: int | Pair | None = None, padding: Padding = "valid"
) -> Expression:
    """Return the largest element of each window: (N, H, W, C) to (N, H', W', C).

    ``stride`` defaults to ``size``; ``padding`` is as for ``windows``. If elements of a window tie,
    the first in row-major order receives the gradient. Raise ``ShapeError`` if the windows do not
    fit or one has only padding, ``DTypeError`` unless ``x`` is a float.
    """
    down, across = _sides("max_pool", x, size, stride, padding)
    for side in (across, down):  # rows first, so that the first row wins among equal maxima
        if not side.changes_nothing:
            x = apply(WindowMaximum(side), x)
    return x


def average_pool(
    x: Expression, size: int | Pair, stride: int | Pair | None = None, padding: Padding = "valid"
) -> Expression:
    """Return each window's mean, unpadded: (N, H, W, C) to (N, H', W', C). See ``max_pool``."""
    down, across = _sides("average_pool", x, size, stride, padding)
    counts = np.multiply.outer(down.counts(), across.counts())
    for side in (down, across):
        if not side.changes_nothing:
            x = apply(WindowSum(side), x)
    if (counts == counts[0, 0]).all():
        return x * (1 / float(counts[0, 0]))
    return x * constant((1 / counts[:, :, np.newaxis]).astype(x.dtype))


def _sides(
    name: str, x: Expression, size: int | Pair, stride: int | Pair | None, padding: Padding
) -> list[AxisWindows]:
    """Return the windows along axis 1, down, and along axis 2, across."""
    require_map(name, x)
    same_dtype(name, x, kinds=FLOATS)
    map_size = x.shape[1], x.shape[2]
    seen = windows(size, size if stride is None else stride, padding, map_size)
    results = seen.output(*map_size)
    sides = [
        AxisWindows(i + 1, seen.size[i], seen.stride[i], seen.padding[i][0], length, results[i])
        for i, length in enumerate(map_size)
    ]
    if min(*sides[0].counts(), *sides[1].counts()) < 1:
        raise ShapeError(
            f"{name}: a window of {seen.size} every {seen.stride} has only padding {seen.padding} "
            f"in a map of {map_size}; expected less padding than the window size on each side"
        )
    return sides
