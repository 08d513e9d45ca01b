"""The gradients that a worker has computed and not sent yet, until they go in one push. No I/O."""

import math
from typing import NamedTuple

from dist_net.vector import Vector
from dist_net.wire.messages import Push, Work

QUICK_STEP_S = 0.002
"""A gradient waits for the next if that will be soon; a message costs some 0.1 ms in all."""


class Computed(NamedTuple):
    """What the minibatch of samples ``start`` to ``stop`` gave.

    It lies in ``slot`` of the worker's memory; ``gradient`` is None if the server reads it there.
    """

    start: int
    stop: int
    base_version: int
    loss_sum: float
    correct: int
    slot: int
    gradient: Vector | None


class HeldGradients:
    """Gradients of minibatches that follow each other in one lease. Times are in seconds."""

    def __init__(self) -> None:
        self._held: list[Computed] = []
        self._pushed_s = -math.inf

    def __len__(self) -> int:
        return len(self._held)

    @property
    def slots(self) -> list[int]:
        """Where they lie."""
        return [each.slot for each in self._held]

    def hold(self, computed: Computed) -> None:
        """Take in the next one."""
        self._held.append(computed)

    def wait_for_next(self, together: int, now: float) -> bool:
        """Whether one more, if there will be one, is soon enough to wait for."""
        return len(self._held) < together and now - self._pushed_s < QUICK_STEP_S

    def push(self, worker_id: int, work: Work, now: float) -> Push:
        """Return them as one push, and hold none."""
        starts, stops, versions, losses, correct, slots, gradients = zip(*self._held, strict=True)
        sent = tuple(each for each in gradients if each is not None)
        self._pushed_s = now
        self._held.clear()
        return Push(
            worker_id,
            work.lease_id,
            starts[0],
            stops,
            versions,
            sum(losses),
            sum(correct),
            slots,
            sent,
        )

    def drop(self) -> None:
        """Forget them: their lease is another's now."""
        self._held.clear()
