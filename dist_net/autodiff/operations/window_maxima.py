"""The maxima of windows along one axis; the gradient goes to the first maximum of each window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import Expression, SharedOperation, apply
from dist_net.autodiff.kernels.memory import copy_in_runs
from dist_net.autodiff.kernels.thread_pool import ThreadPool, by_strip
from dist_net.autodiff.operations.window_sums import AxisWindowsOperation, WindowReduction


@dataclass(frozen=True)
class WindowMaximum(WindowReduction):
    """The largest element of each window; if several tie, the first has the gradient."""

    ufunc = np.maximum
    of_none = -math.inf

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowMaximumGradient(self.windows), *node.inputs, node, cotangent),)


@dataclass(frozen=True)
class WindowMaximumGradient(AxisWindowsOperation, SharedOperation):
    """Each window's cotangent at its first maximum. Inputs: the map, its maxima, cotangents."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, inputs[0].dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, maxima, cotangent = inputs
        # The usual case: the second of two elements has the gradient if the first has it not.
        is_of_two = self.windows.is_partition and len(self.windows.taps()) == 2
        is_gathered = is_of_two and self.is_scattered(x)
        spares = 1 if is_of_two else 3
        through = self._gathered if is_gathered else self._of_two if is_of_two else self._of_many

        def calls(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            return through(x[strip], maxima[strip], cotangent[strip], out[strip], *spare)

        def spare_shapes(strip: slice) -> Sequence[Shape]:
            return [maxima[strip].shape] * spares

        return by_strip(maxima, spare_shapes, calls, pool)

    def _of_two(
        self, x: Array, maxima: Array, cotangent: Array, out: Array, hit: Array
    ) -> Sequence[Call]:
        (_, first), (where, second) = self.windows.taps()
        share, rest = self.windows.of(out, first), self.windows.of(out, second)
        return [
            partial(np.equal, self.windows.of(x, first), maxima, hit),
            partial(np.multiply, cotangent, hit, share),
            partial(
                np.subtract, self.windows.of(cotangent, where), self.windows.of(share, where), rest
            ),
        ]

    def _gathered(
        self, x: Array, maxima: Array, cotangent: Array, out: Array, share: Array
    ) -> Sequence[Call]:
        (_, first), (where, second) = self.windows.taps()
        return [
            copy_in_runs(share, self.windows.of(x, first)),
            partial(np.equal, share, maxima, share),
            partial(np.multiply, share, cotangent, share),
            copy_in_runs(self.windows.of(out, first), share),
            partial(np.subtract, cotangent, share, share),
            copy_in_runs(self.windows.of(out, second), self.windows.of(share, where)),
        ]

    def _of_many(
        self,
        x: Array,
        maxima: Array,
        cotangent: Array,
        out: Array,
        hit: Array,
        left: Array,
        share: Array,
    ) -> Sequence[Call]:
        """Place by place, a maximum takes its window's cotangent, unless an earlier one did."""
        windows = self.windows
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
        return None, None, apply(ElementAtMaximum(self.windows), x, maxima, cotangent)


@dataclass(frozen=True)
class ElementAtMaximum(AxisWindowsOperation):
    """For each window, the element of another map at the place of a map's first maximum.

    Inputs: the map, its maxima, the other map.
    """

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[1].shape, inputs[2].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, maxima, other = inputs
        free, hit = np.empty(out.shape, np.bool_), np.empty(out.shape, np.bool_)
        share = np.empty_like(out)
        calls: list[Call] = [partial(free.fill, True), partial(out.fill, 0)]
        for where, elements in self.windows.taps():
            hits, frees, shares, target = (
                self.windows.of(each, where) for each in (hit, free, share, out)
            )
            calls += [
                partial(
                    np.equal, self.windows.of(x, elements), self.windows.of(maxima, where), hits
                ),
                partial(np.logical_and, hits, frees, hits),
                partial(np.greater, frees, hits, frees),
                partial(np.multiply, self.windows.of(other, elements), hits, shares),
                partial(np.add, target, shares, target),
            ]
        return in_order(calls)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, maxima, _ = node.inputs
        return None, None, apply(WindowMaximumGradient(self.windows), x, maxima, cotangent)
