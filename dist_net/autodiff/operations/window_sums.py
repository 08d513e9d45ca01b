"""Reductions of windows along one axis; their sums, and the gradient of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import Expression, Operation, SharedOperation, apply
from dist_net.autodiff.kernels.memory import copy_in_runs
from dist_net.autodiff.kernels.thread_pool import ThreadPool, by_strip
from dist_net.autodiff.kernels.windows import AxisWindows

SHORT_RUN = 64  # elements: on shorter runs a ufunc takes longer than a copy and then a ufunc


@dataclass(frozen=True)
class AxisWindowsOperation(Operation):
    """An operation on windows along one axis, computed for some images at a time."""

    windows: AxisWindows

    def is_scattered(self, x: Array) -> bool:
        """Whether the elements of ``x`` at one place of all windows lie in short runs."""
        run = math.prod(x.shape[self.windows.axis + 1 :])
        return self.windows.stride > 1 and run < SHORT_RUN and x.flags.c_contiguous


@dataclass(frozen=True)
class WindowReduction(AxisWindowsOperation, SharedOperation):
    """All elements of each window, reduced by ``ufunc``; ``of_none`` for a window of none."""

    ufunc: ClassVar[np.ufunc]
    of_none: ClassVar[float]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        return self.windows.result_shape(x.shape), x.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        (x,) = inputs
        is_gathered = self.windows.is_partition and self.is_scattered(x)

        def spare_shapes(strip: slice) -> Sequence[Shape]:
            return [out[strip].shape] if is_gathered else []

        def calls(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            if is_gathered:
                return self._gathered(x[strip], out[strip], *spare)
            return self._combined(x[strip], out[strip])

        return by_strip(out, spare_shapes, calls, pool)

    def _gathered(self, x: Array, out: Array, spare: Array) -> Sequence[Call]:
        """The calls for elements in short runs, which are copied to contiguous memory first."""
        (_, first), *others = self.windows.taps()
        calls = [copy_in_runs(out, self.windows.of(x, first))]
        for where, elements in others:
            target, gathered = self.windows.of(out, where), self.windows.of(spare, where)
            calls.append(copy_in_runs(gathered, self.windows.of(x, elements)))
            calls.append(partial(self.ufunc, target, gathered, out=target))
        return calls

    def _combined(self, x: Array, out: Array) -> Sequence[Call]:
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
class WindowSumGradient(AxisWindowsOperation, SharedOperation):
    """For each element the sum over the windows that it is in."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (cotangent,) = inputs
        return self.windows.map_shape(cotangent.shape), cotangent.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        (cotangent,) = inputs

        def calls(strip: slice, _: Sequence[Array]) -> Sequence[Call]:
            return self._calls(cotangent[strip], out[strip])

        return by_strip(out, lambda _: [], calls, pool)

    def _calls(self, cotangent: Array, out: Array) -> Sequence[Call]:
        calls: list[Call] = [] if self.windows.is_partition else [partial(out.fill, 0)]
        for where, elements in self.windows.taps():
            target, source = self.windows.of(out, elements), self.windows.of(cotangent, where)
            if self.windows.overlaps:
                calls.append(partial(np.add, target, source, target))
            else:
                calls.append(partial(np.copyto, target, source))
        return calls

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowSum(self.windows), cotangent),)
