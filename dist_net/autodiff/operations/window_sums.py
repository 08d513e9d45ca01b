"""The elements of windows along one axis, combined; sums of them, and what flows back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import Expression, Operation, apply
from dist_net.autodiff.kernels.axis_windows import Line
from dist_net.autodiff.kernels.memory import copy_in_runs
from dist_net.autodiff.kernels.thread_pool import Team
from dist_net.autodiff.operations.threaded import SharedOperation, by_strip

SHORT_RUN = 64  # elements: at shorter ones, a ufunc takes longer than a copy of runs and a ufunc


@dataclass(frozen=True)
class OfLines(Operation):
    """What is computed for windows along one axis, for some images at a time."""

    line: Line

    def is_scattered(self, x: Array) -> bool:
        """Whether the elements of ``x`` at one place of the windows lie in short runs."""
        run = math.prod(x.shape[self.line.axis + 1 :])
        return self.line.stride > 1 and run < SHORT_RUN and x.flags.c_contiguous


@dataclass(frozen=True)
class Combined(OfLines, SharedOperation):
    """All elements of each window, combined by a ufunc."""

    ufunc: ClassVar[np.ufunc]
    of_none: ClassVar[float]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        return self.line.result_shape(x.shape), x.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, team: Team) -> Call:
        (x,) = inputs
        is_gathered = self.line.is_partition and self.is_scattered(x)

        def spare_shapes(strip: slice) -> Sequence[Shape]:
            return [out[strip].shape] if is_gathered else []

        def calls(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            if is_gathered:
                return self._gathered(x[strip], out[strip], *spare)
            return self._combined(x[strip], out[strip])

        return by_strip(out, spare_shapes, calls, team)

    def _gathered(self, x: Array, out: Array, spare: Array) -> Sequence[Call]:
        """For elements in short runs, which are brought together first."""
        (_, first), *others = self.line.taps()
        calls = [copy_in_runs(out, self.line.of(x, first))]
        for where, elements in others:
            target, gathered = self.line.of(out, where), self.line.of(spare, where)
            calls.append(copy_in_runs(gathered, self.line.of(x, elements)))
            calls.append(partial(self.ufunc, target, gathered, out=target))
        return calls

    def _combined(self, x: Array, out: Array) -> Sequence[Call]:
        line, everywhere = self.line, slice(0, self.line.results)
        taps = line.taps()
        whole = [line.of(x, elements) for where, elements in taps if where == everywhere]
        if len(whole) > 1:
            calls: list[Call] = [partial(self.ufunc, whole[0], whole[1], out=out)]
        elif whole:
            calls = [partial(np.copyto, out, whole[0])]
        else:
            calls = [partial(out.fill, self.of_none)]
        calls += [partial(self.ufunc, out, each, out=out) for each in whole[2:]]
        for where, elements in taps:
            if where != everywhere:
                target = line.of(out, where)
                calls.append(partial(self.ufunc, target, line.of(x, elements), out=target))
        return calls


@dataclass(frozen=True)
class WindowSum(Combined):
    """The sum of each window."""

    ufunc = np.add
    of_none = 0.0

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowSumGradient(self.line), cotangent),)


@dataclass(frozen=True)
class WindowSumGradient(OfLines, SharedOperation):
    """For each element the sum over the windows that it is in."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (cotangent,) = inputs
        return self.line.map_shape(cotangent.shape), cotangent.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, team: Team) -> Call:
        (cotangent,) = inputs

        def calls(strip: slice, _: Sequence[Array]) -> Sequence[Call]:
            return self._calls(cotangent[strip], out[strip])

        return by_strip(out, lambda _: [], calls, team)

    def _calls(self, cotangent: Array, out: Array) -> Sequence[Call]:
        calls: list[Call] = [] if self.line.is_partition else [partial(out.fill, 0)]
        for where, elements in self.line.taps():
            target, source = self.line.of(out, elements), self.line.of(cotangent, where)
            if self.line.overlaps:
                calls.append(partial(np.add, target, source, target))
            else:
                calls.append(partial(np.copyto, target, source))
        return calls

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(WindowSum(self.line), cotangent),)
