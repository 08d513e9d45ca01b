"""The weights as rotating snapshots, so that no reader sees a half-written one. No I/O."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dist_net.errors import CheckpointError, SegmentError
from dist_net.nets.checkpoint import AVERAGE, evaluated_weights
from dist_net.optim import UpdateRule
from dist_net.optim.rule import WeightAverage
from dist_net.vector import Vector
from dist_net.wire.messages import PIPELINE

logger = logging.getLogger(__name__)


class Pin(NamedTuple):
    """A snapshot in use by a reader: the index of its buffer, and its version."""

    snapshot: int
    version: int


class Buffers(Protocol):
    """Float32 vectors for a run's weights, by index, perhaps in shared memory.

    ``vector`` raises ``SegmentError`` if the system has no more memory. ``release`` frees a
    vector's memory until it is written again.
    """

    @property
    def vectors(self) -> int: ...
    def vector(self, index: int) -> Vector: ...
    def release(self, index: int) -> None: ...


class PrivateBuffers:
    """Two private vectors, for weights that are sent to every worker as frames."""

    vectors = 2

    def __init__(self, size: int) -> None:
        self._size = size

    def vector(self, index: int) -> Vector:
        return np.empty(self._size, np.float32)

    def release(self, index: int) -> None:
        """Do nothing: both vectors are always in use."""


def _read_only(vector: Vector) -> Vector:
    view = vector.view()
    view.flags.writeable = False
    return view


class WeightStore:
    """The run's weights and the rule that updates them; ``version`` counts the updates.

    ``buffers`` are at least two vectors, borrowed. An update reads the current vector and writes
    the next version into a free one: neither current nor pinned by a reader. Used buffers are
    preferred, so memory grows with the number of readers; when a reader leaves, the memory of
    free buffers is released. With ``average_decay``, also keep an average of the weights (see
    ``WeightAverage``). ``snapshots`` are read-only views of the reserved buffers, always the same
    objects.
    """

    def __init__(
        self,
        buffers: Buffers,
        weights: Vector,
        rule: UpdateRule,
        pins_per_reader: int = PIPELINE.snapshots,
        average_decay: float | None = None,
    ) -> None:
        self._pins_per_reader = pins_per_reader
        self.version = 0
        self.rule = rule
        self._source = buffers
        self._buffers: list[Vector] = []
        self.snapshots: list[Vector] = []
        self._reserve(2)
        self._current = 0
        self._free = list(range(buffers.vectors - 1, 0, -1))
        self._pins: dict[int, deque[Pin]] = {}
        self._pinned = [0] * buffers.vectors
        np.copyto(self._buffers[0], weights)
        self._average = (
            None
            if average_decay is None
            else WeightAverage(weights[: rule.trained_size], average_decay)
        )

    def _reserve(self, buffers: int) -> None:
        """Map the first ``buffers`` vectors. Raise ``SegmentError`` if memory is short."""
        for index in range(len(self._buffers), buffers):
            self._buffers.append(self._source.vector(index))
            self.snapshots.append(_read_only(self._buffers[index]))

    @property
    def weights(self) -> Vector:
        """The current weights, a read-only view that is valid until the next update."""
        return _read_only(self._buffers[self._current])

    @property
    def state(self) -> dict[str, Vector]:
        """The vectors for a checkpoint besides the weights, by name; borrowed."""
        averages = {} if self._average is None else {AVERAGE: self._average.weights}
        return self.rule.state | averages

    @property
    def evaluated_weights(self) -> Vector:
        """The weights for evaluation and inference: their average, if one is kept."""
        return evaluated_weights(self.weights, self.state)

    def staleness(self, base_versions: Sequence[int]) -> list[int]:
        """Return the staleness of gradients of these versions if they are applied now, in turn."""
        return [self.version + earlier - base for earlier, base in enumerate(base_versions)]

    def restore(self, version: int, optimizer_state: dict[str, Vector]) -> None:
        """Continue from ``version`` with a copy of the optimizer's vectors.

        The average of the weights starts afresh if the checkpoint lacks it. Raise
        ``CheckpointError`` for other vectors than this optimizer's.
        """
        own, optimizer_state = self.state, dict(optimizer_state)
        if self._average is None:
            optimizer_state.pop(AVERAGE, None)
        elif AVERAGE not in optimizer_state:
            optimizer_state[AVERAGE] = self._average.weights
        if {name: vector.shape for name, vector in optimizer_state.items()} != {
            name: vector.shape for name, vector in own.items()
        }:
            raise CheckpointError(
                f"the checkpoint holds the optimizer's vectors {sorted(optimizer_state)}, expected "
                f"{sorted(own)} of the parameters' length; resume from another checkpoint"
            )
        for name, vector in optimizer_state.items():
            np.copyto(own[name], vector)
        self.version = version

    def admit(self, worker_id: int) -> bool:
        """Add a reader of the buffers; return False if buffers or memory do not suffice."""
        # Besides pinned buffers, one is current and one is written next.
        needed = self._pins_per_reader * (len(self._pins) + 1) + 2
        if needed > self._source.vectors:
            return False
        try:
            self._reserve(needed)
        except SegmentError as error:
            logger.warning("shared_memory_unavailable worker=%d reason=%s", worker_id, error)
            return False
        self._pins[worker_id] = deque()
        return True

    def dismiss(self, worker_id: int) -> None:
        """Remove a reader, and release the memory of buffers that the other readers do not use."""
        for pin in self._pins.pop(worker_id, ()):
            self._unpin(pin)
        for index in self._free[:-1]:
            if index < len(self._buffers):
                self._source.release(index)

    def pin(self, worker_id: int) -> Pin:
        """Pin the current snapshot for a reader and return it.

        A reader holds at most ``pins_per_reader`` pins; another pin releases the oldest.
        """
        pins = self._pins[worker_id]
        if not pins or pins[-1].version != self.version:
            pins.append(Pin(self._current, self.version))
            self._pinned[self._current] += 1
            if len(pins) > self._pins_per_reader:
                self._unpin(pins.popleft())
        return pins[-1]

    def unpin_before(self, worker_id: int, version: int) -> None:
        """Release the reader's snapshots older than ``version``, which it has reached."""
        pins = self._pins[worker_id]
        while pins and pins[0].version < version:
            self._unpin(pins.popleft())

    def _unpin(self, pin: Pin) -> None:
        self._pinned[pin.snapshot] -= 1
        self._reclaim(pin.snapshot)

    def apply(self, gradients: Sequence[Vector], learning_rates: Sequence[float]) -> bool:
        """Update the weights by each of ``gradients``, in turn; only the last result is visible.

        Return False, and change nothing, if the result is not finite. For buffers, such as moving
        means, the gradient vector contains the observed values.
        """
        current, following = self._current, self._free[-1]
        if not self.rule.update(
            self._buffers[current],
            gradients,
            self._buffers[following],
            learning_rates,
            self.version + 1,
            if_finite=True,
        ):
            return False
        self._free.pop()
        self._current = following
        self.version += len(gradients)
        if self._average is not None:
            trained = self._buffers[following][: self.rule.trained_size]
            self._average.update(trained, self.version, len(gradients))
        self._reclaim(current)
        return True

    def _reclaim(self, snapshot: int) -> None:
        if snapshot != self._current and self._pinned[snapshot] == 0:
            self._free.append(snapshot)
