"""The optimizers and the schedules of their learning rate.

Each optimizer is an exact transcription of the Keras 3 optimizer of the same name: the sources of
Keras are the specification, and the defaults are the same. In the formulas w are the weights, g is
the gradient and η the learning rate.

A schedule is called as ``schedule(epoch, epochs)`` with the progress in (fractional) epochs and the
length of the run. Schedules are pure functions: there is no state to checkpoint.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from dist_net.errors import SettingError
from dist_net.ground.spelling import suggestion
from dist_net.optim import ranges
from dist_net.optim.ranges import CRUMB, Floats
from dist_net.optim.rule import Numbers, Optimizer, Rows


@dataclass(frozen=True)
class SGD(Optimizer):
    """w ← w - η g."""

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, _old: Rows, _new: Rows, numbers: Numbers) -> None:
        for i in range(len(w)):
            out[i] = w[i] - numbers[0] * g[i]


@dataclass(frozen=True)
class Momentum(Optimizer):
    """v ← μ v - η g;  w ← w + v.

    As in Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning", the velocity includes the learning rate, so a change of the rate takes effect
    gradually. PyTorch's velocity does not; both agree while the rate is constant.
    """

    momentum: float = 0.9

    @property
    def initial_state(self) -> dict[str, float]:
        return {"velocity": 0.0}

    @property
    def constants(self) -> tuple[float, ...]:
        return self.momentum, CRUMB

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers) -> None:
        rate, momentum, crumb = numbers
        for i in range(len(w)):
            v = (momentum * old[0][i] - rate * g[i] + crumb) - crumb
            new[0][i] = v
            out[i] = w[i] + v


@dataclass(frozen=True)
class Nesterov(Momentum):
    """v ← μ v - η g;  w ← w + μ v - η g: g counts as the gradient at the look-ahead point."""

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers) -> None:
        rate, momentum, crumb = numbers
        for i in range(len(w)):
            change = rate * g[i]
            v = (momentum * old[0][i] - change + crumb) - crumb
            new[0][i] = v
            out[i] = w[i] - change + momentum * v


@dataclass(frozen=True)
class Adam(Optimizer):
    """m ← β₁ m + (1-β₁) g;  v ← β₂ v + (1-β₂) g²;  w ← w - ηₜ m / (√v + ε).

    ηₜ = η √(1-β₂ᵗ) / (1-β₁ᵗ) at step t. This is Kingma & Ba 2015 (arXiv 1412.6980) in the more
    efficient order given at the end of its section 2: the rate includes the bias corrections, and
    ``epsilon`` is that section's ε̂, added to the uncorrected √v. The step count is not part of
    the optimizer's vectors: the training state holds it once.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    squares = "mean_square"

    @property
    def initial_state(self) -> dict[str, float]:
        return {"mean": 0.0, "mean_square": 0.0}

    @property
    def constants(self) -> tuple[float, ...]:
        return 1 - self.beta1, 1 - self.beta2, self.epsilon, CRUMB

    def rate(self, learning_rate: float, step: float) -> float:
        towards, towards_square = 1 - self.beta1**step, 1 - self.beta2**step
        return float(learning_rate * math.sqrt(towards_square) / towards)

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers) -> None:
        rate, towards, towards_square, epsilon, crumb = numbers[:5]
        for i in range(len(w)):
            weight = w[i]
            if len(numbers) > 5:  # a decay, which is known when the loop is compiled
                weight = weight - weight * numbers[5]
            m = g[i] - old[0][i]  # changed in place: NumPy then takes two thirds of the time
            m *= towards
            m += old[0][i]
            m += crumb
            m -= crumb
            v = g[i] * g[i]
            v -= old[1][i]
            v *= towards_square
            v += old[1][i]
            v += crumb
            v -= crumb
            change = np.sqrt(v)
            change += epsilon
            change = m / change
            change *= rate
            new[0][i] = m
            new[1][i] = v
            out[i] = weight - change


@dataclass(frozen=True)
class AdamW(Adam):
    """w ← w - η λ w, then Adam's step; the decay does not enter Adam's means.

    Loshchilov & Hutter 2019, "Decoupled weight decay regularization" (arXiv 1711.05101). λ is
    ``weight_decay`` and applies to every parameter.
    """

    weight_decay: float = 0.004

    loop = staticmethod(Adam.loop)  # which takes the decay

    def decay(self, learning_rate: float) -> float:
        return learning_rate * self.weight_decay


@dataclass(frozen=True)
class AdaGrad(Optimizer):
    """a ← a + g²;  w ← w - η g / √(a + ε); a starts at ``initial_accumulator``.

    Duchi, Hazan & Singer 2011 as in Keras, with ε inside the root.
    """

    epsilon: float = 1e-7
    initial_accumulator: float = 0.1

    squares = "accumulator"

    @property
    def initial_state(self) -> dict[str, float]:
        return {"accumulator": self.initial_accumulator}

    @property
    def constants(self) -> tuple[float, ...]:
        return (self.epsilon,)

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers) -> None:
        rate, epsilon = numbers
        for i in range(len(w)):
            a = old[0][i] + g[i] * g[i]
            new[0][i] = a
            out[i] = w[i] - g[i] / np.sqrt(a + epsilon) * rate


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """v ← r v + (1-r) g²;  w ← w - η g / √(v + ε).

    r is ``rho``. Tieleman & Hinton 2012 as in Keras, with ε inside the root and without momentum;
    PyTorch adds ε to the root, and its ``alpha`` is 0.99 by default.
    """

    rho: float = 0.9
    epsilon: float = 1e-7

    squares = "mean_square"

    @property
    def initial_state(self) -> dict[str, float]:
        return {"mean_square": 0.0}

    @property
    def constants(self) -> tuple[float, ...]:
        return 1 - self.rho, self.epsilon, CRUMB

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers) -> None:
        rate, towards, epsilon, crumb = numbers
        for i in range(len(w)):
            v = (old[0][i] + (g[i] * g[i] - old[0][i]) * towards + crumb) - crumb
            new[0][i] = v
            out[i] = w[i] - g[i] / np.sqrt(v + epsilon) * rate


_ALL = SGD(), Momentum(), Nesterov(), Adam(), AdamW(), AdaGrad(), RMSprop()
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {type(each).__name__.lower(): each for each in _ALL}
)
"""Optimizers with default settings, by their command-line names."""


def optimizer_named(name: str | Optimizer, own: Optimizer | None = None) -> Optimizer:
    """Return an optimizer by its name, with default settings, or by its text (``str``).

    ``own``, a recipe's, may be of a class of its own. An ``Optimizer`` is returned as it is. Raise
    ``SettingError`` for an unknown name, and for an optimizer that is no dataclass.
    """
    if isinstance(name, Optimizer):
        if not is_dataclass(name):
            kind = type(name).__name__
            raise SettingError(
                f"optimizer of class {kind}, which is no dataclass; expected "
                f"@dataclass(frozen=True) above it: workers know it by its fields"
            )
        return name
    text = str(name)
    if own is not None and text == str(own):
        return own
    if text in OPTIMIZERS:
        return OPTIMIZERS[text]
    kind, _, settings = text.removesuffix(")").partition("(")
    kinds = {type(each).__name__: type(each) for each in OPTIMIZERS.values()}
    try:
        pairs = (each.split("=") for each in settings.split(", ") if each)
        return kinds[kind](**{key: float(value) for key, value in pairs})
    except (KeyError, ValueError, TypeError, SettingError) as error:
        raise SettingError(f"unknown optimizer {name!r}; {suggestion(text, OPTIMIZERS)}") from error


Schedule: TypeAlias = Callable[[float, float], float]
"""Maps (epoch, epochs) to the multiplier of the learning rate after ``epoch`` of ``epochs``."""


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
        ranges.use_plain_numbers(self)

    def __call__(self, epoch: float, epochs: float) -> float:
        return float(self.factor ** math.floor(epoch / self.every_epochs))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to ``final`` (Loshchilov & Hutter 2017, without restarts)."""

    final: float = 0.0

    def __post_init__(self) -> None:
        ranges.use_plain_numbers(self)

    def __call__(self, epoch: float, epochs: float) -> float:
        if epoch >= epochs:
            return self.final
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class WarmUp:
    """A linear rise from 0 to 1 over ``epochs``; then ``then``, which counts only the rest."""

    epochs: float
    then: Schedule = field(default_factory=ConstantRate)

    def __post_init__(self) -> None:
        ranges.positive("epochs", self.epochs)

    def __call__(self, epoch: float, epochs: float) -> float:
        if epoch <= self.epochs:
            return epoch / self.epochs
        return self.then(epoch - self.epochs, epochs - self.epochs)


SCHEDULES: Mapping[str, Schedule] = {"constant": ConstantRate(), "cosine": Cosine()}


def schedule_named(schedule: str | Schedule) -> Schedule:
    """Return the schedule of this name; a function is returned as it is. Raise SettingError."""
    if callable(schedule):
        return schedule
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        names = " or ".join(map(repr, SCHEDULES))
        raise SettingError(f"schedule={schedule!r}: expected {names}, or one of dist_net.optim")
    return SCHEDULES[schedule]


CHECKED_EPOCHS = 1000


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run of ``epochs`` passes over ``samples`` samples."""

    highest: float
    schedule: Schedule
    samples: int
    epochs: int

    def __call__(self, progress: float) -> float:
        """Return the rate after ``progress`` samples, counted over all epochs, at most all.

        Raise ``SettingError`` unless the schedule returns a finite number that is not negative.
        """
        epoch = min(progress / self.samples, self.epochs)
        multiplier = self.schedule(epoch, self.epochs)
        if type(multiplier) is not float or not 0.0 <= multiplier < math.inf:
            multiplier = ranges.not_negative(f"schedule({epoch:g}, {self.epochs})", multiplier)
        return self.highest * multiplier

    def require_rates(self) -> None:
        """Raise ``SettingError`` if the rate is refused at one of a thousand epochs."""
        for place in range(CHECKED_EPOCHS + 1):
            self(self.samples * self.epochs * place / CHECKED_EPOCHS)
