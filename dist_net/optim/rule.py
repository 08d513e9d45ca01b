"""Optimizers and their update rules.

An ``Optimizer`` holds settings and the arithmetic of one step. Its ``UpdateRule`` holds the state
for one vector of parameters. NumPy computes the steps in several passes over memory; with the
extra ``fast``, compiled loops need one pass.

A model's vector may end in buffers: moving averages of statistics of the data, such as the means
and variances of batch normalisation. They are not trained. In their place the "gradient" holds the
statistics of one minibatch, and the update moves the averages towards them:
moving ← moving + (1 - momentum) · (observed - moving).

The server applies this to its own, current average. Each update is thus a weighted mean of two
values, for any number of workers and any staleness: a variance never becomes negative, and
staleness only shifts the average to a slightly earlier time. If workers sent the *change* instead,
(1 - momentum) · (observed - the average they saw), an old state would be fed back: with a constant
staleness of s that diverges if 1 - momentum is at least 2 sin(π / (4s + 2)), which a momentum of
0.9 reaches at s = 16. It overshoots long before, and a single slow worker that saw a variance of 1
makes a current variance of 0.01 negative.
"""

from __future__ import annotations

import contextlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from dist_net.errors import ShapeError
from dist_net.optim.ranges import (
    TOO_LARGE,
    Floats,
    all_below,
    require_fraction,
    require_positive,
)

logger = logging.getLogger(__name__)

ArrayShapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every array, in the order of the flat vector."""

# Minimum number of elements per strip. Strips keep the intermediate values of a long vector in the
# L2 cache until the next operation reads them. Measured on Zen 4 (1 MiB of L2): at 3,000,000
# float32, strips of 64k take 0.78 of the time of whole passes (SGD and Adam); strips of 16k are no
# faster and, with more NumPy calls, take 1.3 times as long at 101,770 elements.
STRIP_LENGTH = 65536

MIN_COMPILED = 4096
"""Minimum number of elements for compiled loops. Measured on Zen 4: with fewer, NumPy takes at most
21 us longer per step (Adam; SGD: 6), while importing numba adds 0.45 s to every server's start.
"""

MAX_COMPILED = 3
"""Maximum steps of one call of a compiled loop: a worker pushes this many gradients at most."""


class Optimizer(ABC):
    """The settings and arithmetic of an update; immutable, so several rules may share it.

    ``loop`` names the compiled version in ``dist_net.optim.compiled``, which takes ``constants``
    after the state. Subclasses do not inherit it, because they may compute something else; without
    ``loop``, NumPy computes the steps. Up to a mean staleness of ``full_rate_staleness`` updates,
    the learning rate need not be lowered.
    """

    loop: ClassVar[str | None] = None
    full_rate_staleness: ClassVar[float] = 4.0

    @property
    def initial_state(self) -> dict[str, float]:
        """The initial value of each state vector, by name."""
        return {}

    @property
    def constants(self) -> tuple[float, ...]:
        """The settings that the compiled loop takes."""
        return ()

    def rate(self, learning_rate: float, step: int) -> float:
        """Return the factor of the update at ``step``, which counts from 1."""
        return learning_rate

    def decay(self, learning_rate: float) -> float | None:
        """Return the share of each weight to subtract before the update; None: no decay."""
        return None

    @abstractmethod
    def step(
        self, w: Floats, g: Floats, out: Floats, rate: float, scratch: Floats, *state: Floats
    ) -> None:
        """Write the weights ``w`` after a step along ``g`` to ``out``, and update ``state``.

        ``state`` has the order of ``initial_state``. All vectors are strips of equal length;
        ``out`` may be ``w`` itself, and ``scratch`` may be overwritten.
        """

    def start(self, size: int, dtype: DTypeLike = np.float32) -> UpdateRule:
        """Return a new rule for vectors of ``size`` elements."""
        return UpdateRule(self, size, dtype)


def start_rule(
    optimizer: Optimizer,
    shapes: ArrayShapes,
    momenta: Sequence[float] = (),
    clip_norm: float | None = None,
) -> UpdateRule:
    """Return a new float32 rule for a flat vector of these arrays.

    The last ``len(momenta)`` arrays are buffers with these momenta. ``clip_norm``: see
    ``UpdateRule``.
    """
    for momentum in momenta:
        require_fraction("momentum", momentum)
    sizes = [math.prod(shape) for _, shape in shapes]
    trained = len(sizes) - len(momenta)
    rates = [np.full(n, 1 - m, np.float32) for n, m in zip(sizes[trained:], momenta, strict=True)]
    averaging_rates = np.concatenate([np.empty(0, np.float32), *rates])
    return UpdateRule(optimizer, sum(sizes[:trained]), np.float32, averaging_rates, clip_norm)


def strips_of(size: int) -> tuple[slice, ...]:
    """Split ``size`` elements into equal strips of 1 to 2 times ``STRIP_LENGTH`` elements."""
    count = max(1, size // STRIP_LENGTH)
    edges = [size * index // count for index in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(edges))


class UpdateRule:
    """The running state of an optimizer for one vector: ``trained_size`` parameters, then buffers.

    Parameters are updated strip by strip to stay in the cache: each strip takes the steps along all
    gradients before the next strip. ``averaging_rates`` has the fraction by which each buffer
    element moves towards its observation. A gradient with a norm above ``clip_norm`` is scaled
    down to that norm (Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063).

    ``state`` is the part that a checkpoint stores: vectors of ``trained_size`` elements, none for
    plain SGD. Restore it by writing into these arrays (``state[name][:] = saved``), never by
    replacing them. Look them up again after each update, which may swap them for others.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        trained_size: int,
        dtype: DTypeLike = np.float32,
        averaging_rates: Floats | None = None,
        clip_norm: float | None = None,
    ) -> None:
        if clip_norm is not None:
            require_positive("clip_norm", clip_norm)
        self.optimizer = optimizer
        initial = optimizer.initial_state
        self.state = {name: np.full(trained_size, value, dtype) for name, value in initial.items()}
        # Steps write the next state here, so that a step can be discarded.
        self._next_state = {name: np.empty(trained_size, dtype) for name in initial}
        self._rates = np.empty(0, dtype) if averaging_rates is None else averaging_rates
        self._difference = np.empty_like(self._rates)
        self.trained_size = trained_size
        self.size = trained_size + self._rates.size
        self._strips = strips_of(trained_size)
        self._scratch = np.empty(max(each.stop - each.start for each in self._strips), dtype)
        self._clip_norm = clip_norm
        self._clipped: list[Floats] = []  # allocated when a gradient is first clipped
        self._compiled = self._compile() if np.dtype(dtype) == np.float32 else {}

    def reset(self) -> None:
        """Forget all updates."""
        for name, value in self.optimizer.initial_state.items():
            self.state[name].fill(value)

    def _compile(self) -> dict[int, Callable[..., bool]]:
        """Return the compiled loops by number of gradients; empty if NumPy computes the steps."""
        name = type(self.optimizer).__name__
        loop = vars(type(self.optimizer)).get("loop")
        LOOPS: Container[str] = ()
        if self.size >= MIN_COMPILED:
            # The module imports numba, which is optional.
            with contextlib.suppress(ImportError):
                from dist_net.optim.compiled import LOOPS, compiled
        if loop not in LOOPS:
            logger.info("updates_begun rule=%s loops=numpy", name)
            return {}
        logger.info("updates_begun rule=%s loops=compiled", name)
        factors = 1 if self.optimizer.decay(1.0) is None else 2
        sizes = factors, len(self.state), len(self.optimizer.constants)
        return {count: compiled(loop, count, *sizes) for count in range(1, MAX_COMPILED + 1)}

    def update(
        self,
        weights: Floats,
        gradients: Sequence[Floats],
        out: Floats,
        learning_rates: Sequence[float],
        step: int,
        *,
        if_finite: bool = False,
    ) -> bool:
        """Write the weights after a step along each of ``gradients`` in turn to ``out``.

        Expects at least one gradient. All vectors have the rule's size and are borrowed for the
        call; gradients are only read, and ``out`` may be ``weights`` itself. ``learning_rates`` has
        one rate per gradient. ``step`` numbers the first of them, counting from 1. Raise
        ``ShapeError`` for a vector of another length. Allocates no vector of this size.

        With ``if_finite``, returns False and leaves ``state`` unchanged if a weight or an element
        of the state would become infinite or nan; a weight of ``TOO_LARGE`` counts as infinite. The
        content of ``out`` is then undefined.
        """
        shapes = [vector.shape for vector in (weights, *gradients, out)]
        if shapes != [(self.size,)] * len(shapes):
            raise ShapeError(
                f"update of a vector of {self.size} elements with weights, gradients and out of "
                f"shapes {shapes}: expected ({self.size},) for each"
            )
        if self._rates.size:
            buffers = slice(self.trained_size, self.size)
            observed = [gradient[buffers] for gradient in gradients]
            self._average(weights[buffers], observed, out[buffers])
            # Check before the state changes.
            if if_finite and not all_below(TOO_LARGE, out[buffers]):
                return False
            trained = slice(0, self.trained_size)
            weights, out = weights[trained], out[trained]
            gradients = [gradient[trained] for gradient in gradients]
        if self._clip_norm is not None:
            gradients = [
                self._within_norm(index, gradient, self._clip_norm)
                for index, gradient in enumerate(gradients)
            ]
        return self._step_along(weights, gradients, out, learning_rates, step, if_finite)

    def _step_along(
        self,
        weights: Floats,
        gradients: Sequence[Floats],
        out: Floats,
        learning_rates: Sequence[float],
        step: int,
        if_finite: bool,
    ) -> bool:
        """Apply ``update`` to the parameters alone."""
        rates = tuple(
            self.optimizer.rate(learning_rate, step + taken)
            for taken, learning_rate in enumerate(learning_rates)
        )
        decays = [self.optimizer.decay(learning_rate) for learning_rate in learning_rates]
        # Gradients in received messages may be unaligned; the compiled loops require alignment.
        is_aligned = all(gradient.flags.aligned for gradient in gradients)
        is_apart = not np.may_share_memory(weights, out)
        loop = self._compiled.get(len(gradients)) if is_aligned and is_apart else None
        if loop:
            states = *self.state.values(), *self._next_state.values()
            constants = self.optimizer.constants
            factors = *rates, *(decay for decay in decays if decay is not None)
            is_good = loop(weights, tuple(gradients), out, factors, *states, *constants)
        else:
            steps = weights, gradients, out, rates, decays, if_finite
            with np.errstate(all="ignore"):
                is_good = all(self._take_steps(strip, *steps) for strip in self._strips)
        if if_finite and not is_good:
            return False
        if loop or if_finite:
            for name, vector in self._next_state.items():
                self.state[name], self._next_state[name] = vector, self.state[name]
        return True

    def _within_norm(self, index: int, gradient: Floats, clip_norm: float) -> Floats:
        """Return the gradient of the ``index``-th step, or a copy scaled down to ``clip_norm``."""
        norm = math.sqrt(float(np.vdot(gradient, gradient)))
        if not math.isfinite(norm):  # the square overflowed, or the gradient is not finite
            norm = float(np.linalg.norm(gradient.astype(np.float64)))
        if norm <= clip_norm or not math.isfinite(norm):
            return gradient
        while len(self._clipped) <= index:
            self._clipped.append(np.empty(self.trained_size, gradient.dtype))
        return np.multiply(gradient, clip_norm / norm, out=self._clipped[index])

    def _average(self, latest: Floats, observed: Sequence[Floats], out: Floats) -> None:
        """Move the buffers towards each observation in turn."""
        with np.errstate(all="ignore"):
            for each in observed:
                np.subtract(each, latest, out=self._difference)
                self._difference *= self._rates
                np.add(latest, self._difference, out=out)
                latest = out

    def _take_steps(
        self,
        strip: slice,
        weights: Floats,
        gradients: Sequence[Floats],
        out: Floats,
        rates: Sequence[float],
        decays: Sequence[float | None],
        if_finite: bool,
    ) -> bool:
        """Take the steps for a strip.

        With ``if_finite``, works on a copy of the state and returns whether all results are finite.
        """
        own = [vector[strip] for vector in self.state.values()]
        if if_finite:
            moved = [vector[strip] for vector in self._next_state.values()]
            for copy, vector in zip(moved, own, strict=True):
                np.copyto(copy, vector)
            own = moved
        latest, following = weights[strip], out[strip]
        scratch = self._scratch[: latest.size]
        for gradient, rate, decay in zip(gradients, rates, decays, strict=True):
            if decay is not None:
                np.multiply(latest, decay, out=scratch)
                np.subtract(latest, scratch, out=following)
                latest = following
            self.optimizer.step(latest, gradient[strip], following, rate, scratch, *own)
            latest = following
        if not if_finite:
            return True
        return all_below(TOO_LARGE, following) and all(all_below(math.inf, each) for each in own)


class WeightAverage:
    """a ← a + (1 - d)(w - a) after each update; a starts as a copy of the initial weights.

    d = min(``decay``, (1 + t) / (10 + t)) at update t, so that a short run's average is not
    dominated by its initial weights. Training never reads the average, which depends on the
    updates alone (Polyak & Juditsky 1992).
    """

    def __init__(self, weights: Floats, decay: float) -> None:
        require_fraction("average_decay", decay)
        self.weights = weights.copy()
        self._decay = decay
        self._strips = strips_of(weights.size)
        self._scratch = np.empty(max(each.stop - each.start for each in self._strips), np.float32)

    def update(self, weights: Floats, version: int, steps: int) -> None:
        """Add the weights after update ``version``, the last of ``steps`` applied together."""
        decay = min(self._decay, (1 + version) / (10 + version))
        for strip in self._strips:
            average = self.weights[strip]
            difference = self._scratch[: average.size]
            np.subtract(weights[strip], average, out=difference)
            difference *= 1 - decay**steps
            average += difference
