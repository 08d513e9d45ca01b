"""Convolution with what follows it, as inference computes it: one operation, one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import Expression, Operation
from dist_net.autodiff.kernels.convolution.choice import Algorithm, Choice
from dist_net.autodiff.kernels.convolution.epilogue import Finish
from dist_net.autodiff.kernels.convolution.problem import Arrays, Problem
from dist_net.autodiff.kernels.thread_pool import Team
from dist_net.autodiff.kernels.windows import Windows


@dataclass(frozen=True)
class FusedConvolution(Operation):
    """``finish`` of the convolution of x by a kernel: a description, which no plan computes.

    Inputs: x (N, H, W, C), kernel (kh, kw, C / groups, O), bias (O,), and perhaps a residual of
    the output's shape.
    """

    windows: Windows
    groups: int = 1
    finish: Finish = field(default_factory=Finish)

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, kernel = inputs[:2]
        images, height, width, _ = x.shape
        return (images, *self.windows.output(height, width), kernel.shape[3]), x.dtype

    def problem(self, node: Expression) -> Problem:
        """The shapes of a node of this operation."""
        x = node.inputs[0]
        return Problem(self.windows, self.groups, self.finish, x.shape, node.shape, x.dtype)


@dataclass(frozen=True)
class PreparedFilter(Operation):
    """A convolution's filter, laid out or transformed as an algorithm reads it."""

    problem: Problem
    algorithm: Algorithm
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.algorithm.prepared_shape(self.problem), self.problem.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (kernel,) = inputs

        def prepare() -> None:
            np.copyto(out, self.algorithm.prepare(self.problem, kernel))

        return prepare


@dataclass(frozen=True, eq=False)
class PlannedConvolution(Operation):
    """A fused convolution by a chosen algorithm, block by block, on a team of threads.

    Inputs: x, the kernel as the algorithm has prepared it, bias, and perhaps a residual.
    """

    problem: Problem
    choice: Choice
    team: Team
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.problem.out, self.problem.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, prepared, bias, *residual = inputs
        arrays = Arrays(x, prepared, bias, residual[0] if residual else None, out)
        algorithm = self.choice.algorithm
        return self.team.call(
            [
                [
                    algorithm.calls(self.problem, block, arrays, self.team.scratch(thread))
                    for thread in range(self.team.threads)
                ]
                for block in self.choice.blocking.blocks(self.problem.out, algorithm.row_step)
            ]
        )

    def reserve_scratch(self) -> None:
        """Asks the team for the memory that the largest block needs."""
        algorithm = self.choice.algorithm
        blocks = self.choice.blocking.blocks(self.problem.out, algorithm.row_step)
        self.team.reserve(max(algorithm.scratch_bytes(self.problem, block) for block in blocks))
