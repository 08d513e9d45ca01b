"""Schedules: what the learning rate is multiplied by as the epochs pass.

Called as ``schedule(epoch, epochs)``: ``epoch`` is how much of the run is done, in epochs and
fractions of one, ``epochs`` the whole run. Pure functions of the two: nothing to checkpoint.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from dist_net.optim.ranges import require_not_negative, require_positive


class Schedule(Protocol):
    """A multiplier of the learning rate over the run."""

    def __call__(self, epoch: float, epochs: float) -> float:
        """The multiplier after ``epoch`` of ``epochs``."""
        ...


@dataclass(frozen=True)
class ConstantRate:
    """The learning rate as given, throughout."""

    def __call__(self, epoch: float, epochs: float) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay:
    """The rate is multiplied by ``factor`` after every ``every_epochs`` (PyTorch's StepLR)."""

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
    """A straight line from 0 to 1 over the first ``epochs``, and then another schedule.

    ``then`` begins where the warm-up ends, and sees only the epochs that are left.
    """

    epochs: float
    then: Schedule = field(default_factory=ConstantRate)

    def __post_init__(self) -> None:
        require_positive("epochs", self.epochs)

    def __call__(self, epoch: float, epochs: float) -> float:
        if epoch <= self.epochs:
            return epoch / self.epochs
        return self.then(epoch - self.epochs, epochs - self.epochs)
