"""What an optimizer is: settings that start an update rule, and the rule's walk over the vectors.

Every rule of this package is an exact transcription of the Keras 3 optimizer of the same name
(its sources are the specification, and so are its defaults). NumPy alone computes them; with the
extra ``fast`` they take one pass over memory instead of many.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dist_net.errors import ShapeError
from dist_net.optim.settings import TOO_LARGE

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating[Any]]

# At least so many elements are worked on at a time, so that the intermediate values of a long
# vector are still in the L2 cache when the next operation reads them. Measured on Zen 4 (1 MiB of
# L2): at 3,000,000 float32 strips of 64k take 0.78 (SGD and Adam) of the time of whole passes;
# strips of 16k gain nothing more and pay for their NumPy calls, 1.3 times at 101,770 elements.
STRIP_LENGTH = 65536

MOST_COMPILED = 3
"""Steps that a compiled loop takes at once: as many gradients as a worker pushes together."""

CRUMB = 1e-24
"""Added to what decays, and taken away again, so that it does not become subnormal.

Where a gradient stays zero, as at the border of pictures, a running mean shrinks without end, and
with subnormal numbers Intel's processors calculate ten times slower: Adam took 0.7 ms instead of
0.06 for 101,770 parameters. By this the last place of a float32 is never worth less than 1e-31:
what has shrunk to some hundreds of that stays as it is. Above 1e-17 not a bit changes.
"""


def keep_normal(vector: Vector) -> None:
    """Keep in place what has shrunk to almost nothing from becoming subnormal; see ``CRUMB``."""
    vector += CRUMB
    vector -= CRUMB


class UpdateRule(Protocol):
    """The running state of an optimizer for one vector of parameters."""

    state: dict[str, Vector]
    """What a checkpoint keeps: vectors of the parameters' length and dtype, empty for plain SGD.

    Restore it by writing into these arrays (``state[name][:] = saved``), never by replacing them.
    Look them up anew after an update, which may have put others in their place.
    """

    def update(
        self,
        weights: Vector,
        gradients: Sequence[Vector],
        out: Vector,
        learning_rates: Sequence[float],
        step: int,
        *,
        if_finite: bool = False,
    ) -> bool:
        """Write into ``out`` the weights after a step along each of ``gradients``, in turn.

        There is at least one. All are vectors of the rule's size and are borrowed for the call.
        ``out`` may be ``weights`` itself; gradients are only read. ``learning_rates`` has one for
        each of them, and ``step`` is the first one's number, 1 for the first of all. Raises
        ``ShapeError`` when a vector has another length.

        ``if_finite``: no such step is taken if it would make a weight, or an element of the state,
        infinite or not a number, as an infinite gradient does; weights of ``TOO_LARGE`` count, too.
        Then the result is False, ``state`` is as it was, and ``out`` is of no use.
        """
        ...


class Optimizer(Protocol):
    """The settings of an update rule; immutable, so that one may start any number of rules."""

    def start(self, size: int, dtype: DTypeLike = np.float32) -> UpdateRule:
        """Return a fresh rule for vectors of ``size`` elements."""
        ...


def require_size(size: int, weights: Vector, gradients: Sequence[Vector], out: Vector) -> None:
    """Raise ``ShapeError`` for a vector of another length: it would be updated in part."""
    shapes = [vector.shape for vector in (weights, *gradients, out)]
    if shapes != [(size,)] * len(shapes):
        raise ShapeError(
            f"update of a vector of {size} elements with weights, gradients and out of shapes "
            f"{shapes}: expected ({size},) for each"
        )


def all_below(limit: float, vector: Vector) -> bool:
    """Whether the magnitude of every element is below ``limit``, of ``TOO_LARGE`` or more."""
    # A sum of squares takes half the time of isfinite and all (11 against 20 µs for 101,770
    # elements) and allocates nothing. But it may be large where no element is. Unlike dot, vdot
    # overflows silently.
    is_small = float(np.vdot(vector, vector)) < TOO_LARGE**2
    return is_small or bool((np.abs(vector) < limit).all())


def strips_of(size: int) -> tuple[slice, ...]:
    """Cut ``size`` elements into equal strips of ``STRIP_LENGTH`` to twice as many elements."""
    count = max(1, size // STRIP_LENGTH)
    edges = [size * index // count for index in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(edges))


class StripRule(ABC):
    """An update rule that works strip by strip, so that each strip stays in the cache.

    A subclass gives the arithmetic for one strip; its state vectors are passed in the order in
    which ``state`` names them. Nothing of the parameters' size is allocated after the start.

    ``loop`` is the name of the same in ``dist_net.optim.compiled``, where ``constants`` are passed
    behind the state. It is called, if numba is there, for updates that are not in place. A rule
    whose ``loop`` is None, or is none of those, is computed by NumPy.

    Of several gradients each strip takes all before the next strip's turn: weights and state go
    through memory once, and what lies between two steps stays in the cache.
    """

    loop: str | None = None
    constants: tuple[float, ...] = ()

    def __init_subclass__(cls) -> None:
        if "update_strip" in vars(cls) and "loop" not in vars(cls):
            cls.loop = None  # the one of its base computes something else

    def __init__(self, size: int, dtype: DTypeLike, **initial_state: float) -> None:
        self.size = size
        self.state: dict[str, Vector] = {
            name: np.full(size, value, dtype) for name, value in initial_state.items()
        }
        # Where the next state is written, so that a step can be left untaken.
        self._next_state = {name: np.empty(size, dtype) for name in initial_state}
        self._strips = strips_of(size)
        self._scratch = np.empty(max(each.stop - each.start for each in self._strips), dtype)
        self._compiled = self._compile() if np.dtype(dtype) == np.float32 else {}

    def _compile(self) -> dict[int, Callable[..., bool]]:
        """The loop, compiled, by the number of gradients; empty where it cannot be had."""
        name = type(self).__name__
        try:
            # numba, which it imports, is an extra, and takes half a second to import.
            from dist_net.optim.compiled import LOOPS, compiled
        except ImportError:
            LOOPS = {}
        if self.loop not in LOOPS:
            logger.info("updates_begun rule=%s loops=numpy", name)
            return {}
        logger.info("updates_begun rule=%s loops=compiled", name)
        return {
            count: compiled(self.loop, count, len(self.state), len(self.constants))
            for count in range(1, MOST_COMPILED + 1)
        }

    def update(
        self,
        weights: Vector,
        gradients: Sequence[Vector],
        out: Vector,
        learning_rates: Sequence[float],
        step: int,
        *,
        if_finite: bool = False,
    ) -> bool:
        """Write into ``out`` the weights after these steps; see ``UpdateRule.update``."""
        require_size(self.size, weights, gradients, out)
        rates = tuple(
            self.rate(learning_rate, step + taken)
            for taken, learning_rate in enumerate(learning_rates)
        )
        # A gradient that came over a network lies anywhere; loops are compiled for aligned ones.
        is_aligned = all(gradient.flags.aligned for gradient in gradients)
        is_apart = not np.may_share_memory(weights, out)
        loop = self._compiled.get(len(gradients)) if is_aligned and is_apart else None
        if not loop and not if_finite:
            for strip in self._strips:
                self._take_steps(strip, weights, gradients, out, rates, self.state)
            return True
        if loop:
            states = *self.state.values(), *self._next_state.values()
            is_good = loop(weights, tuple(gradients), out, rates, *states, *self.constants)
        else:
            steps = weights, gradients, out, rates
            is_good = all(self._take_finite_steps(strip, *steps) for strip in self._strips)
        if if_finite and not is_good:
            return False
        for name, vector in self._next_state.items():
            self.state[name], self._next_state[name] = vector, self.state[name]
        return True

    def _take_finite_steps(
        self,
        strip: slice,
        weights: Vector,
        gradients: Sequence[Vector],
        out: Vector,
        rates: Sequence[float],
    ) -> bool:
        """Take the steps for a strip, from a copy of its state; whether all of it is finite."""
        for name, vector in self.state.items():
            np.copyto(self._next_state[name][strip], vector[strip])
        with np.errstate(all="ignore"):
            self._take_steps(strip, weights, gradients, out, rates, self._next_state)
        state = [vector[strip] for vector in self._next_state.values()]
        return all_below(TOO_LARGE, out[strip]) and all(all_below(math.inf, each) for each in state)

    def _take_steps(
        self,
        strip: slice,
        weights: Vector,
        gradients: Sequence[Vector],
        out: Vector,
        rates: Sequence[float],
        state: Mapping[str, Vector],
    ) -> None:
        """Take the steps for a strip, and move its ``state`` on."""
        latest, following = weights[strip], out[strip]
        own = [vector[strip] for vector in state.values()]
        scratch = self._scratch[: latest.size]
        for gradient, rate in zip(gradients, rates, strict=True):
            self.update_strip(latest, gradient[strip], following, rate, scratch, *own)
            latest = following

    def rate(self, learning_rate: float, step: int) -> float:
        """Return the factor of the update at ``step``; the learning rate unless overridden."""
        return learning_rate

    @abstractmethod
    def update_strip(
        self,
        weights: Vector,
        gradient: Vector,
        out: Vector,
        rate: float,
        scratch: Vector,
        *state: Vector,
    ) -> None:
        """Update one strip. ``out`` may be ``weights``: it is written after they were read."""
