"""Operations whose work a team of threads can share, and how rows of arrays are shared out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dist_net.autodiff.expression import Array, Kernel, Operation, Shape
from dist_net.autodiff.kernels.problem import carve, scratch_bytes
from dist_net.autodiff.kernels.team import Task, Team

STRIP_BYTES = 1 << 17
"""What a task writes at a time; with what it reads beside, half of an L2 cache of 1 MiB."""


class SharedOperation(Operation):
    """An operation with a kernel that a team shares. The threads never change the result, and
    how many there are, no more than the last digits of sums."""

    def kernel(self, inputs: Sequence[Array], out: Array) -> Kernel:
        return self.shared_kernel(inputs, out, Team())

    def shared_kernel(self, inputs: Sequence[Array], out: Array, team: Team) -> Kernel:
        """As ``kernel``; the calls of one run are divided between the threads of ``team``."""
        raise NotImplementedError


def strips(rows: Array) -> list[slice]:
    """The rows, along the first axis, in strips of at most STRIP_BYTES, or of one row."""
    length = max(1, STRIP_BYTES * len(rows) // max(1, rows.nbytes))
    return [slice(start, min(start + length, len(rows))) for start in range(0, len(rows), length)]


def by_strip(
    parts: Sequence[slice],
    spare_shapes: Callable[[slice], Sequence[Shape]],
    dtype: np.dtype[np.generic],
    calls: Callable[[slice, Sequence[Array]], Sequence[Kernel]],
    team: Team,
) -> Kernel:
    """One call that carries out ``calls`` for each strip, with spare arrays of these shapes."""
    shapes = [spare_shapes(part) for part in parts]
    team.reserve(max((scratch_bytes(each, dtype) for each in shapes), default=0))
    tasks: list[Task] = [
        [calls(part, carve(team.scratch(i), each, dtype)) for i in range(team.threads)]
        for part, each in zip(parts, shapes, strict=True)
    ]
    return team.kernel(tasks)
