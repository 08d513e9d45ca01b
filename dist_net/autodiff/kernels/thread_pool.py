"""A pool of threads that share the work of one call, each with its own scratch memory.

NumPy and BLAS release the interpreter's lock, so threads help if the pieces of work are large. BLAS
must use one thread per call, because each thread of the pool makes its own calls.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import (
    Array,
    Call,
    Shape,
    aligned_bytes,
    carve,
    cut,
    in_order,
    scratch_bytes,
)
from dist_net.autodiff.kernels.gemm import Gemm

Task = Sequence[Sequence[Call]]
"""The same calls for each thread that may run them, bound to that thread's scratch."""

SHARED_BYTES = 1 << 20
"""The smallest result whose elementwise work is shared. A thread takes about 50 us to wake up, also
after waiting for the interpreter's lock between two calls. The speedup of two threads is 1.1 for
1 MB, 1.5 for 6 MB and 2 for 13 MB."""
SHARED_PRODUCT = 1 << 22
"""The fewest multiplications of a product that is shared, which take 80 us."""
SHARED_STRIP_BYTES = 1 << 19  # long calls, so that threads seldom wait for the lock

STRIP_BYTES = 1 << 17
"""Bytes that a task writes at a time if work is not shared: together with its reads, half of an L2
cache of 1 MiB."""

MAX_THREADS = 256  # a larger number is a typing error, and would exhaust the host


class ThreadPool:
    """``threads`` threads, including the caller's; the others end with the pool.

    ``gemm`` multiplies matrices; the default makes one BLAS call per product.
    """

    def __init__(self, threads: int = 1, gemm: Gemm | None = None) -> None:
        self.threads = threads
        self.gemm = gemm or Gemm()
        self._scratch_bytes = 0
        self._scratch: list[NDArray[np.uint8]] = []
        self._calls: list[SimpleQueue[_Round | None]] = [SimpleQueue() for _ in range(threads - 1)]
        helpers = [
            threading.Thread(target=_follow, args=(i, calls), name=f"pool-{i}", daemon=True)
            for i, calls in enumerate(self._calls, 1)
        ]
        for helper in helpers:
            helper.start()
        self.close = weakref.finalize(self, _dismiss, self._calls, helpers)

    def shares(self, result_bytes: int) -> bool:
        """Return whether to share elementwise work with a result of ``result_bytes``."""
        return self.threads > 1 and result_bytes >= SHARED_BYTES

    def reserve(self, scratch_bytes: int) -> None:
        """Ensure that each thread has ``scratch_bytes`` of scratch; call before ``scratch``."""
        self._scratch_bytes = max(self._scratch_bytes, scratch_bytes)

    @property
    def scratch_bytes(self) -> int:
        """The scratch of all threads together, in bytes."""
        return self.threads * self._scratch_bytes

    def scratch(self, thread: int) -> NDArray[np.uint8]:
        """Return a thread's scratch; every call may overwrite it."""
        if not self._scratch or len(self._scratch[0]) < self._scratch_bytes:
            self._scratch = [aligned_bytes(self._scratch_bytes) for _ in range(self.threads)]
        return self._scratch[thread]

    def tasks(
        self,
        shapes: Sequence[Sequence[Shape]],
        dtype: np.dtype[np.generic],
        calls: Callable[[int, Sequence[Array]], Sequence[Call]],
    ) -> list[Task]:
        """Return a task per list of ``shapes``; ``calls`` takes its number and scratch arrays."""
        self.reserve(max((scratch_bytes(each, dtype) for each in shapes), default=0))
        return [
            [calls(i, carve(self.scratch(thread), each, dtype)) for thread in range(self.threads)]
            for i, each in enumerate(shapes)
        ]

    def call(self, tasks: Sequence[Task]) -> Call:
        """Return a call that runs ``tasks``, each on the first free thread."""
        return in_order(self.calls(tasks))

    def calls(self, tasks: Sequence[Task]) -> list[Call]:
        """Return ``call(tasks)`` as a list, of several calls if there is one thread or one task."""
        if self.threads == 1 or len(tasks) == 1:
            return [call for task in tasks for call in task[0]]
        return [partial(_share, self._calls, tasks)]


class _Round:
    """Tasks in progress. A helper wakes up in about 50 us; nobody waits for a late one."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()
        self._helping = 0
        self._is_closed = False
        self._helped = threading.Lock()
        self._helped.acquire()
        self.error: BaseException | None = None

    def work(self, thread: int) -> None:
        for task in self._tasks:
            for call in task[thread]:
                call()

    def help(self, thread: int) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._helping += 1
        try:
            self.work(thread)
        except BaseException as error:  # the caller's thread raises it
            self.error = error
        with self._lock:
            self._helping -= 1
            if self._is_closed and self._helping == 0:
                self._helped.release()

    def close(self) -> None:
        """Wait for the helpers that are running, and prevent others from starting."""
        with self._lock:
            self._is_closed = True
            is_helped = self._helping > 0
        if is_helped:
            self._helped.acquire()


def _share(helpers: Sequence[SimpleQueue[_Round | None]], tasks: Sequence[Task]) -> None:
    round_ = _Round(tasks)
    for calls in helpers:
        calls.put(round_)
    try:
        round_.work(0)
    finally:
        round_.close()
    if round_.error is not None:
        raise round_.error


def _follow(thread: int, calls: SimpleQueue[_Round | None]) -> None:
    np.seterr(all="ignore")  # as BoundPlan.run does for the caller's thread
    while (round_ := calls.get()) is not None:
        round_.help(thread)


def _dismiss(
    queues: Sequence[SimpleQueue[_Round | None]], helpers: Sequence[threading.Thread]
) -> None:
    for calls in queues:
        calls.put(None)
    for helper in helpers:
        if helper is not threading.current_thread():  # garbage collection may run on a helper
            helper.join()


def one_task(tasks: Sequence[Task]) -> Task:
    """Return the task that makes the calls of ``tasks`` in order."""
    return [[call for calls in by_task for call in calls] for by_task in zip(*tasks, strict=True)]


def by_strip(
    result: Array,
    spares: int,
    calls: Callable[[slice, Sequence[Array]], Sequence[Call]],
    pool: ThreadPool,
) -> Call:
    """Return one call that makes ``calls`` for each strip of ``result`` along its first axis.

    ``calls`` receives the strip and ``spares`` spare arrays of its shape and dtype. If the result
    is large, the pool shares the strips.
    """
    is_shared = pool.shares(result.nbytes)
    strip_bytes = SHARED_STRIP_BYTES if is_shared or not spares else STRIP_BYTES
    parts = cut(len(result), max(1, strip_bytes * len(result) // max(1, result.nbytes)))
    shapes = [[result[part].shape] * spares for part in parts]
    tasks = pool.tasks(shapes, result.dtype, lambda i, spare: calls(parts[i], spare))
    return pool.call(tasks) if is_shared else in_order([call for task in tasks for call in task[0]])
