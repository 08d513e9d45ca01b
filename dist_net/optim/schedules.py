"""Schedules: multipliers of the learning rate over the epochs of a run.

Called as ``schedule(epoch, epochs)`` with the progress in (fractional) epochs and the length of the
run. Schedules are pure functions: there is no state to checkpoint.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from dist_net.optim.ranges import require_not_negative, require_positive


class Schedule(Protocol):
    """A multiplier of the learning rate over the run."""

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the multiplier after ``epoch`` of ``epochs``."""
        ...


@dataclass(frozen=True)
class ConstantRate:
    """A constant learning rate."""

    def __call__(self, epoch: float, epochs: float) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay:
    """Multiply the rate by ``factor`` after every ``every_epochs`` (PyTorch's StepLR)."""

    every_epochs: float
    factor: float

    def __post_init__(self) -> None:
        require_positive("every_epochs", self.every_epochs)
        require_positive("factor", self.factor)

    def __call__(self, epoch: float, epochs: float) -> float:
        return float(self.factor ** math.floor(epoch / self.every_epochs))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to ``final`` (Loshchilov & Hutter 2017, without restarts)."""

    final: float = 0.0

    def __post_init__(self) -> None:
        require_not_negative("final", self.final)

    def __call__(self, epoch: float, epochs: float) -> float:
        if epoch >= epochs:
            return self.final
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class WarmUp:
    """A linear rise from 0 to 1 over the first ``epochs``, followed by ``then``.

    ``then`` starts when the warm-up ends and counts only the remaining epochs.
    """

    epochs: float
    then: Schedule = field(default_factory=ConstantRate)

    def __post_init__(self) -> None:
        require_positive("epochs", self.epochs)

    def __call__(self, epoch: float, epochs: float) -> float:
        if epoch <= self.epochs:
            return epoch / self.epochs
        return self.then(epoch - self.epochs, epochs - self.epochs)
