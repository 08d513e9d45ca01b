"""What an optimizer is, and how its step is taken along whole vectors: its update rule.

An ``Optimizer`` holds settings and the arithmetic of one step. Its ``UpdateRule`` holds the state
for one vector of parameters. NumPy alone computes the steps; with the extra ``fast`` they take one
pass over memory instead of many.

The vector of a model may end in buffers: moving averages of what the model sees of its data, such
as the means and variances of batch normalisation. Nobody trains them. Where they lie, the
"gradient" holds what one minibatch showed, and the update moves them a little towards that:
moving ← moving + (1 - momentum) · (observed - moving).

The server does this to its own, current average. So each update is a weighted mean of two values,
however many workers there are and however old what they send is: a variance never becomes
negative, and staleness only averages over a slightly earlier time. If workers sent the *change*
instead, (1 - momentum) · (observed - the average they saw), an old state would be fed back: with a
constant staleness of s that diverges where 1 - momentum is 2 sin(π / (4s + 2)) or more, for a
momentum of 0.9 from s = 16 on. It overshoots long before, and a single slow worker that saw a
variance of 1 where there is now one of 0.01 makes it negative.
"""

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

# At least so many elements are worked on at a time, so that the intermediate values of a long
# vector are still in the L2 cache when the next operation reads them. Measured on Zen 4 (1 MiB of
# L2): at 3,000,000 float32 strips of 64k take 0.78 (SGD and Adam) of the time of whole passes;
# strips of 16k gain nothing more and pay for their NumPy calls, 1.3 times at 101,770 elements.
STRIP_LENGTH = 65536

LEAST_COMPILED = 4096
"""Elements from which on numba is imported. Measured on Zen 4: for fewer, NumPy takes at most 21 us
longer for a step (Adam; 6 for SGD), where importing numba takes 0.45 s of every server's start.
"""

MOST_COMPILED = 3
"""Steps that a compiled loop takes at once: as many gradients as a worker pushes together."""


class Optimizer(ABC):
    """The settings of an update and its arithmetic; immutable, so it may start any number of rules.

    ``loop`` names the same arithmetic in ``dist_net.optim.compiled``, to which ``constants`` are
    passed behind the state. It counts for the class that sets it and not for its subclasses, which
    may compute something else: without one, NumPy computes the steps. Gradients up to
    ``full_rate_staleness`` updates old, on average, do not call for a lower learning rate.
    """

    loop: ClassVar[str | None] = None
    full_rate_staleness: ClassVar[float] = 4.0

    @property
    def initial_state(self) -> dict[str, float]:
        """The names of the state vectors, and what their elements begin as."""
        return {}

    @property
    def constants(self) -> tuple[float, ...]:
        """What the compiled loop needs of the settings."""
        return ()

    def rate(self, learning_rate: float, step: int) -> float:
        """The factor of the update at ``step``, 1 for the first."""
        return learning_rate

    def decay(self, learning_rate: float) -> float | None:
        """The share of each weight that is taken away before the update; None: nothing is."""
        return None

    @abstractmethod
    def step(
        self, w: Floats, g: Floats, out: Floats, rate: float, scratch: Floats, *state: Floats
    ) -> None:
        """Writes to ``out`` the weights ``w`` after a step along ``g``, and moves ``state`` on.

        The state comes in the order of ``initial_state``. All vectors are strips of equal length;
        ``out`` may be ``w`` itself, and ``scratch`` is free to use.
        """

    def start(self, size: int, dtype: DTypeLike = np.float32) -> "UpdateRule":
        """A fresh rule for vectors of ``size`` elements."""
        return UpdateRule(self, size, dtype)


def start_rule(
    optimizer: Optimizer,
    shapes: ArrayShapes,
    momenta: Sequence[float] = (),
    clip_norm: float | None = None,
) -> "UpdateRule":
    """A fresh float32 rule for a flat vector of these arrays, the last of which are buffers.

    ``momenta`` has the momentum of each buffer; ``clip_norm`` is the rule's.
    """
    for momentum in momenta:
        require_fraction("momentum", momentum)
    sizes = [math.prod(shape) for _, shape in shapes]
    trained = len(sizes) - len(momenta)
    rates = [np.full(n, 1 - m, np.float32) for n, m in zip(sizes[trained:], momenta, strict=True)]
    averaging_rates = np.concatenate([np.empty(0, np.float32), *rates])
    return UpdateRule(optimizer, sum(sizes[:trained]), np.float32, averaging_rates, clip_norm)


def strips_of(size: int) -> tuple[slice, ...]:
    """Cuts ``size`` elements into equal strips of ``STRIP_LENGTH`` to twice as many elements."""
    count = max(1, size // STRIP_LENGTH)
    edges = [size * index // count for index in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(edges))


class UpdateRule:
    """The running state of an optimizer for one vector: ``trained_size`` parameters, then buffers.

    The parameters are updated strip by strip, so that each strip stays in the cache; a strip takes
    the steps along all gradients before the next strip's turn. ``averaging_rates`` has, for each
    element of the buffers, how far it moves towards what is observed. A gradient whose norm is
    above ``clip_norm`` is scaled down to that (Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063).

    ``state`` is what a checkpoint keeps: vectors of ``trained_size`` elements, none for plain SGD.
    Restore it by writing into these arrays (``state[name][:] = saved``), never by replacing them.
    Look them up anew after an update, which may have put others in their place.
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
        # Where the next state is written, so that a step can be left untaken.
        self._next_state = {name: np.empty(trained_size, dtype) for name in initial}
        self._rates = np.empty(0, dtype) if averaging_rates is None else averaging_rates
        self._difference = np.empty_like(self._rates)
        self.trained_size = trained_size
        self._size = trained_size + self._rates.size
        self._strips = strips_of(trained_size)
        self._scratch = np.empty(max(each.stop - each.start for each in self._strips), dtype)
        self._clip_norm = clip_norm
        self._clipped: list[Floats] = []  # made when a gradient is first clipped
        self._compiled = self._compile() if np.dtype(dtype) == np.float32 else {}

    def _compile(self) -> dict[int, Callable[..., bool]]:
        """The optimizer's loop, compiled, by the number of gradients; empty if NumPy is to do."""
        name = type(self.optimizer).__name__
        loop = vars(type(self.optimizer)).get("loop")
        LOOPS: Container[str] = ()
        if self._size >= LEAST_COMPILED:
            # numba, which it imports, is an extra.
            with contextlib.suppress(ImportError):
                from dist_net.optim.compiled import LOOPS, compiled
        if loop not in LOOPS:
            logger.info("updates_begun rule=%s loops=numpy", name)
            return {}
        logger.info("updates_begun rule=%s loops=compiled", name)
        factors = 1 if self.optimizer.decay(1.0) is None else 2
        sizes = factors, len(self.state), len(self.optimizer.constants)
        return {count: compiled(loop, count, *sizes) for count in range(1, MOST_COMPILED + 1)}

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
        """Writes to ``out`` the weights after a step along each of ``gradients``, in turn.

        There is at least one. All are vectors of the rule's size and are borrowed for the call.
        ``out`` may be ``weights`` itself; gradients are only read. ``learning_rates`` has one for
        each of them, and ``step`` is the first one's number, 1 for the first of all. Raises
        ShapeError for a vector of another length. Allocates nothing of the vector's size.

        ``if_finite``: the steps are not taken if they would make a weight, or an element of the
        state, infinite or not a number, as an infinite gradient does; a weight of ``TOO_LARGE``
        counts as infinite. The result is then False, ``state`` is as it was, and ``out`` is of no
        use.
        """
        shapes = [vector.shape for vector in (weights, *gradients, out)]
        if shapes != [(self._size,)] * len(shapes):
            raise ShapeError(
                f"update of a vector of {self._size} elements with weights, gradients and out of "
                f"shapes {shapes}: expected ({self._size},) for each"
            )
        if self._rates.size:
            buffers = slice(self.trained_size, self._size)
            observed = [gradient[buffers] for gradient in gradients]
            self._average(weights[buffers], observed, out[buffers])
            # Before the state changes.
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
        """As ``update``, of the parameters alone."""
        rates = tuple(
            self.optimizer.rate(learning_rate, step + taken)
            for taken, learning_rate in enumerate(learning_rates)
        )
        decays = [self.optimizer.decay(learning_rate) for learning_rate in learning_rates]
        # A gradient that came over a network lies anywhere; loops are compiled for aligned ones.
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
        """The gradient, or a copy that is scaled down to the norm, for the ``index``-th step."""
        norm = math.sqrt(float(np.vdot(gradient, gradient)))
        if not math.isfinite(norm):  # its square overflows, or it is not finite itself
            norm = float(np.linalg.norm(gradient.astype(np.float64)))
        if norm <= clip_norm or not math.isfinite(norm):
            return gradient
        while len(self._clipped) <= index:
            self._clipped.append(np.empty(self.trained_size, gradient.dtype))
        return np.multiply(gradient, clip_norm / norm, out=self._clipped[index])

    def _average(self, latest: Floats, observed: Sequence[Floats], out: Floats) -> None:
        """Moves the buffers towards each observation in turn."""
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
        """Takes the steps for a strip. ``if_finite``: on a copy of its state, and False if not all
        that they give is finite."""
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
