"""Operations whose work a pool of threads can share, and how rows of arrays are shared out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import Operation
from dist_net.autodiff.kernels.memory import carve, scratch_bytes
from dist_net.autodiff.kernels.thread_pool import SHARED_STRIP_BYTES, Task, ThreadPool

STRIP_BYTES = 1 << 17
"""What a task writes at a time; with what it reads beside, half of an L2 cache of 1 MiB."""


class SharedOperation(Operation):
    """An operation whose work a pool shares. The threads never change the result, and
    how many there are, no more than the last digits of sums."""

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return self.bind_shared(inputs, out, ThreadPool())

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        """As ``bind``; the calls of one run are divided between the threads of ``pool``."""
        raise NotImplementedError


def strips(rows: Array, strip_bytes: int | None = None) -> list[slice]:
    """The rows, along the first axis, in strips of at most so many bytes, or of one row."""
    length = max(1, (strip_bytes or STRIP_BYTES) * len(rows) // max(1, rows.nbytes))
    return [slice(start, min(start + length, len(rows))) for start in range(0, len(rows), length)]


def by_strip(
    result: Array,
    spare_shapes: Callable[[slice], Sequence[Shape]],
    calls: Callable[[slice, Sequence[Array]], Sequence[Call]],
    pool: ThreadPool,
) -> Call:
    """One call that carries out ``calls`` for each strip of ``result``, along its first axis.

    They are given spare arrays of the result's dtype and of these shapes. The pool shares a large
    result.
    """
    is_shared = pool.shares(result.nbytes)
    parts = strips(result, SHARED_STRIP_BYTES if is_shared else STRIP_BYTES)
    shapes = [spare_shapes(part) for part in parts]
    pool.reserve(max((scratch_bytes(each, result.dtype) for each in shapes), default=0))
    tasks: list[Task] = [
        [calls(part, carve(pool.scratch(i), each, result.dtype)) for i in range(pool.threads)]
        for part, each in zip(parts, shapes, strict=True)
    ]
    return pool.call(tasks) if is_shared else in_order([call for task in tasks for call in task[0]])
