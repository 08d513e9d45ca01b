"""Convolution fused with its epilogue, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import Expression, Operation
from dist_net.autodiff.kernels.convolution.choice import Algorithm, Choice
from dist_net.autodiff.kernels.convolution.epilogue import Epilogue
from dist_net.autodiff.kernels.convolution.problem import Arrays, Problem
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import Windows


@dataclass(frozen=True)
class FusedConvolution(Operation):
    """``epilogue`` of the convolution of x by filters: a description, to be planned later.

    Inputs: x (N, H, W, C), filters (kh, kw, C / groups, O), bias (O,), and optionally a residual
    of the output's shape.
    """

    windows: Windows
    groups: int = 1
    epilogue: Epilogue = field(default_factory=Epilogue)

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, filters = inputs[:2]
        images, height, width, _ = x.shape
        return (images, *self.windows.output(height, width), filters.shape[3]), x.dtype

    def problem(self, node: Expression) -> Problem:
        """Return the problem that a node of this operation describes."""
        x = node.inputs[0]
        return Problem(self.windows, self.groups, self.epilogue, x.shape, node.shape, x.dtype)


@dataclass(frozen=True)
class PreparedFilters(Operation):
    """A convolution's filters in the layout of an algorithm."""

    problem: Problem
    algorithm: Algorithm
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.algorithm.prepared_shape(self.problem), self.problem.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (filters,) = inputs

        def prepare() -> None:
            np.copyto(out, self.algorithm.prepare(self.problem, filters))

        return prepare


@dataclass(frozen=True, eq=False)
class PlannedConvolution(Operation):
    """A fused convolution that a pool of threads computes block by block, by a chosen algorithm.

    Inputs: x, the filters prepared by the algorithm, bias, and optionally a residual.
    """

    problem: Problem
    choice: Choice
    pool: ThreadPool
    reads_contiguous = True

    @property
    def label(self) -> str:
        return f"Convolution by {self.choice.algorithm.name}"

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.problem.out, self.problem.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, prepared, bias, *residual = inputs
        arrays = Arrays(x, prepared, bias, residual[0] if residual else None, out)
        algorithm = self.choice.algorithm
        return self.pool.call(
            [
                [
                    algorithm.calls(self.problem, block, arrays, self.pool.scratch(thread))
                    for thread in range(self.pool.threads)
                ]
                for block in self.choice.blocking.blocks(self.problem.out, algorithm.row_step)
            ]
        )

    def reserve_scratch(self) -> None:
        """Reserve the pool's memory for the largest block."""
        algorithm = self.choice.algorithm
        blocks = self.choice.blocking.blocks(self.problem.out, algorithm.row_step)
        self.pool.reserve(max(algorithm.scratch_bytes(self.problem, block) for block in blocks))
