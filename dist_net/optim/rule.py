"""Optimizers and their update rules.

An ``Optimizer`` holds settings and the arithmetic of one step. An ``UpdateRule`` applies it to a
*training state*: one flat vector with all that training changes,

    parameters │ buffers │ the optimizer's vectors │ average of the parameters │ steps taken

so that a lease, a checkpoint and the mean of several workers need no list of parts. A step reads
one state and writes another. NumPy computes it in several passes over memory; with the extra
``fast``, a compiled loop needs one pass.

Buffers are moving averages of statistics of the data, such as the means and variances of batch
normalisation. They are not trained. In their place the gradient holds the statistics of one
minibatch, and the step moves the averages towards them:
moving ← moving + (1 - momentum) · (observed - moving).
"""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from dist_net.errors import SettingError, ShapeError
from dist_net.ground.spelling import KnownOptions
from dist_net.ground.vector import AVERAGE, ArrayShapes
from dist_net.optim import ranges
from dist_net.optim.ranges import TOO_LARGE, Floats, all_below

logger = logging.getLogger(__name__)

VARIANCES = {"variance", "moving_variance", "running_var"}
"""The names of buffers that are never negative, after the name of their layer."""

STEPS = "steps"
"""The name of the last part of a training state."""

MIN_COMPILED = 4096
"""Minimum number of elements for compiled loops. Measured on Zen 4: with fewer, NumPy takes at most
21 us longer per step (Adam; SGD: 6), while importing numba adds 0.45 s to every process's start.
"""

STRIP = 1 << 16
"""Elements that NumPy computes at a time, to bound the memory of intermediate results."""

Numbers = tuple[float, ...]
Rows = tuple[Floats, ...]
CompiledLoop = Callable[..., None]


class Optimizer(KnownOptions):
    """The settings and arithmetic of an update: a frozen dataclass, so several rules may share it.

    Its text, which repeats its fields, names it on other hosts.

    A subclass defines its step by ``loop``, or by ``step``, which only NumPy computes.
    """

    squares: ClassVar[str | None] = None
    """The state vector that is a mean or sum of g², by the root of which steps are divided."""

    def __post_init__(self) -> None:
        ranges.use_plain_numbers(self)

    @property
    def initial_state(self) -> dict[str, float]:
        """The initial value of each state vector, by name."""
        return {}

    @property
    def constants(self) -> tuple[float, ...]:
        """The settings that the loop takes."""
        return ()

    def rate(self, learning_rate: float, step: float) -> float:
        """Return the factor of the update at ``step``, from 1 on; a mean of steps is a fraction."""
        return learning_rate

    def rate_scale(self, share: float) -> float:
        """Return the factor of the update for this share of a minibatch.

        Steps along the gradients of all shares must be as long, on average, as one along their
        mean, where its noise is larger than the gradient. A step that is divided by the root of g²
        is shorter, as noise multiplies g² by 1 / share (Malladi et al. 2022, arXiv 2205.10287).
        """
        return 1 / math.sqrt(share) if self.squares else 1.0

    def decay(self, learning_rate: float) -> float | None:
        """Return the share of each weight to subtract before the update; None: no decay."""
        return None

    @staticmethod
    def loop(w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers) -> None:
        """Write the weights ``w`` after a step along ``g`` to ``out``, and ``old`` to ``new``.

        ``numbers`` are the rate, the ``constants``, and, for a class that has ``loop`` and
        ``decay``, perhaps the decay. The loop runs over the first axis: numba compiles it for
        vectors, elements in float32, and NumPy runs it for rows, each a strip of the vectors. Both
        return the same bits. LLVM vectorizes no loop that reads and writes one vector.
        """
        raise NotImplementedError

    def step(
        self, w: Floats, g: Floats, out: Floats, rate: float, scratch: Floats, *state: Floats
    ) -> None:
        """Write the weights ``w`` after a step along ``g`` to ``out``, and update ``state``.

        Vectors, ``state`` as in ``initial_state``, are equally long; ``out`` may be ``w`` itself.
        """
        self.loop_by_strips(w, g, out, state, state, (rate, *self.constants))

    def loop_by_strips(
        self, w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers
    ) -> None:
        """Compute ``loop`` by NumPy; vectors may be read and written."""
        for start in range(0, len(w), STRIP):
            row = np.newaxis, slice(start, start + STRIP)
            olds, news = (tuple(each[row] for each in of) for of in (old, new))
            self.loop(w[row], g[row], out[row], olds, news, numbers)

    @property
    def has_loop(self) -> bool:
        """Whether ``loop`` defines the step, and no subclass has another ``step`` or ``decay``."""
        parts = {"loop", "step", "decay"}
        owner = next(each for each in type(self).__mro__ if parts & vars(each).keys())
        return "loop" in vars(owner)

    def start(self, size: int, dtype: DTypeLike = np.float32) -> "UpdateRule":
        """Return a rule for vectors of ``size`` elements."""
        return UpdateRule(self, size, dtype)


@cache
def _compiled(compiling: Any, loop: CompiledLoop, vectors: int, numbers: int) -> CompiledLoop:
    """Compile an optimizer's loop by ``dist_net.ground.compiling``: a step in one pass."""
    read, written, tuple_of = compiling.READ, compiling.WRITTEN, compiling.types.Tuple
    old, new = tuple_of([read] * vectors), tuple_of([written] * vectors)
    signature = read, read, written, old, new, tuple_of([compiling.REAL] * numbers)
    compiled: CompiledLoop = compiling.jit(*signature)(loop)
    return compiled


def start_rule(
    optimizer: Optimizer,
    shapes: ArrayShapes,
    momenta: Sequence[float] = (),
    clip_norm: float = 0.0,
    average_decay: float = 0.0,
) -> "UpdateRule":
    """Return a float32 rule for a vector of these arrays, the last of which are buffers."""
    sizes = [math.prod(shape) for _, shape in shapes]
    trained = len(sizes) - len(momenta)
    if trained < 1:
        raise SettingError(
            "the model has no parameter to train; expected a layer that is not Frozen"
        )
    rates = np.array([1 - momentum for momentum in momenta], np.float32)
    averaging_rates = np.repeat(rates, np.array(sizes[trained:], np.intp))
    size = sum(sizes[:trained])
    rule = UpdateRule(optimizer, size, np.float32, averaging_rates, clip_norm, average_decay)
    for index in range(trained, len(sizes)):
        name, start = shapes[index][0], sum(sizes[:index])
        if momenta[index - trained] == 1:
            rule.frozen.append(slice(start, start + sizes[index]))
        elif name.replace(".", "/").rpartition("/")[2] in VARIANCES:
            rule.variances[name] = slice(start, start + sizes[index])
    return rule


class UpdateRule:
    """An optimizer's steps on training states of ``trained_size`` parameters, with scratch memory.

    ``averaging_rates`` has the fraction by which each buffer element moves towards its observation.
    A gradient with a norm above ``clip_norm`` is scaled down to that norm (Pascanu, Mikolov &
    Bengio 2013, arXiv 1211.5063); 0: no gradient is.

    With ``average_decay``, the state includes an average of the parameters, a ← a + (1 - d)(w - a)
    after step t with d = min(``average_decay``, (1 + t) / (10 + t)), so that a short run's average
    is not dominated by its initial weights. Training never reads it (Polyak & Juditsky 1992).

    A state has ``state_size`` elements, of which the first ``size`` are the model's vector: the
    parameters and the buffers. ``variances`` has the places of buffers that are never negative,
    ``frozen`` those of buffers that are constant; ``has_statistics``: there are others.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        trained_size: int,
        dtype: DTypeLike = np.float32,
        averaging_rates: Floats | None = None,
        clip_norm: float = 0.0,
        average_decay: float = 0.0,
    ) -> None:
        self.optimizer = optimizer
        self.trained_size = trained_size
        self._dtype = np.dtype(dtype)
        self._rates = np.empty(0, dtype) if averaging_rates is None else averaging_rates
        self.has_statistics = bool(self._rates.any())
        self._difference = np.empty_like(self._rates)
        self.size = trained_size + self._rates.size
        self.clip_norm = ranges.not_negative("clip_norm", clip_norm)
        self._clipped: Floats | None = None  # allocated when a gradient is first clipped
        self._average_decay = ranges.fraction("average_decay", average_decay)
        self._names = [*optimizer.initial_state, *([AVERAGE] if average_decay else [])]
        self.state_size = self.size + len(self._names) * trained_size + 1
        self.variances: dict[str, slice] = {}
        self.frozen: list[slice] = []
        self.part = slice(None)  # of the model's vector, which steps update

    def keep_part(self, number: int, count: int) -> None:
        """Let steps update one of ``count`` parts of a state, and others the other parts.

        The last has the buffers. The first has everything if elements may depend on each other.
        """
        used = count if self.optimizer.has_loop else 1
        edges = [self.trained_size * min(each, used) // used for each in (number, number + 1)]
        self.part = slice(*(each if each < self.trained_size else self.size for each in edges))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The trained size, the size, the number of the optimizer's vectors, the state's size."""
        return self.trained_size, self.size, len(self.optimizer.initial_state), self.state_size

    def initial(self, weights: Floats) -> Floats:
        """Return a new state: a copy of the model's vector, and no step taken."""
        state = np.zeros(self.state_size, self._dtype)
        state[: self.size] = weights
        parts = self.parts(state)
        for name, value in self.optimizer.initial_state.items():
            parts[name].fill(value)
        if self._average_decay:
            parts[AVERAGE][:] = state[: self.trained_size]
        return state

    def parts(self, state: Floats) -> dict[str, Floats]:
        """Return the parts behind the model's vector by name, as views. Raise ``ShapeError``."""
        self._require_length("state", state, self.state_size)
        vectors = state[self.size : -1].reshape(len(self._names), self.trained_size, copy=False)
        return dict(zip(self._names, vectors, strict=True)) | {STEPS: state[-1:]}

    def fault_of(self, state: Floats, base: Floats | None = None, steps: int = 0) -> str | None:
        """Return why no run leads to this state, or no ``steps`` steps from ``base``; else None."""
        parts, n = self.parts(state), self.trained_size
        if not (all_below(TOO_LARGE, state[:n]) and all_below(math.inf, state[n:])):
            return "its numbers are not finite"
        parts |= {name: state[place] for name, place in self.variances.items()}
        for name in parts.keys() & {self.optimizer.squares, *self.variances}:
            if parts[name].min() < 0:
                return f"{name} is negative"
        before, taken = 0.0 if base is None else float(base[-1]), float(state[-1])
        # Adam divides by 1 - β^steps; a large count is rounded.
        if taken < max(before, steps > 0) or (base is not None and taken > before + steps + 1):
            return f"its number of steps is {taken:g}, expected {before + steps:g}"
        return None

    def step(
        self, state: Floats, gradient: Floats, learning_rate: float, out: Floats, share: float = 1.0
    ) -> None:
        """Write the state after a step along ``gradient`` to ``out``; allocates at most strips.

        ``gradient`` has ``size`` elements, is only read, and is of this ``share`` of a minibatch.
        ``out`` must not overlap ``state``.
        """
        self._require_length("gradient", gradient, self.size)
        self._require_length("state", state, self.state_size)
        self._require_length("out", out, self.state_size)
        n, moments = self.trained_size, len(self.optimizer.initial_state)
        first, stop, _ = self.part.indices(self.size)
        own = slice(min(first, n), min(stop, n))
        starts = range(self.size, self.size + moments * n, n)
        olds, news = (tuple(of[each : each + n][own] for each in starts) for of in (state, out))
        weights, following, descent = state[own], out[own], gradient[:n]
        if first < n < stop:
            self._average(state[n : self.size], gradient[n:], out[n : self.size])
        if self.clip_norm:
            descent = self._within_norm(descent, self.clip_norm)
        descent = descent[own]
        np.add(state[-1:], 1, out=out[-1:])
        step = float(out[-1])
        scale = self.optimizer.rate_scale(share)  # the decay does not depend on gradients
        rate = float(scale * self.optimizer.rate(learning_rate, step))
        decay = self.optimizer.decay(learning_rate)
        numbers = rate, *self.optimizer.constants, *([] if decay is None else [float(decay)])
        # Gradients in received messages may be unaligned; compiled loops require alignment.
        if self._loop is not None and descent.flags.aligned:
            self._loop(weights, descent, following, olds, news, numbers)
        else:
            with np.errstate(all="ignore"):
                self._step_by_numpy(weights, descent, following, olds, news, numbers)
        if self._average_decay:
            rate = 1 - min(self._average_decay, (1 + step) / (10 + step))
            average, averaged = (of[-1 - n : -1][own] for of in (state, out))
            np.subtract(following, average, out=averaged)
            averaged *= rate
            averaged += average

    def _step_by_numpy(
        self, w: Floats, g: Floats, out: Floats, old: Rows, new: Rows, numbers: Numbers
    ) -> None:
        optimizer, constants = self.optimizer, self.optimizer.constants
        if optimizer.has_loop:
            optimizer.loop_by_strips(w, g, out, old, new, numbers)
            return
        scratch = self._scratch[: len(w)]
        for before, after in zip(old, new, strict=True):
            np.copyto(after, before)
        for decay in numbers[1 + len(constants) :]:
            np.multiply(w, decay, out=scratch)
            np.subtract(w, scratch, out=out)
            w = out
        optimizer.step(w, g, out, numbers[0], scratch, *new)

    def _require_length(self, name: str, vector: Floats, length: int) -> None:
        if vector.shape != (length,):
            raise ShapeError(
                f"{name} of shape {vector.shape} for a rule of {self.size} elements: expected "
                f"({length},)"
            )

    @cached_property
    def _scratch(self) -> Floats:
        return np.empty(self.trained_size, self._dtype)

    @cached_property
    def _loop(self) -> CompiledLoop | None:
        """The compiled loop; None if NumPy computes the steps."""
        optimizer, loop = self.optimizer, None
        if optimizer.has_loop and self.size >= MIN_COMPILED and self._dtype == np.float32:
            vectors, constants = len(optimizer.initial_state), len(optimizer.constants)
            numbers = 1 + constants + (optimizer.decay(1.0) is not None)
            with contextlib.suppress(ImportError):  # of numba, which is optional
                import dist_net.ground.compiling as compiling

                loop = _compiled(compiling, type(optimizer).loop, vectors, numbers)
        kind = "compiled" if loop else "numpy"
        logger.info("updates_begun rule=%s loops=%s", type(optimizer).__name__, kind)
        return loop

    def _within_norm(self, gradient: Floats, clip_norm: float) -> Floats:
        """Return the gradient, or a copy scaled down to ``clip_norm``."""
        norm = math.sqrt(float(np.vdot(gradient, gradient)))
        if not math.isfinite(norm):  # the square overflowed, or the gradient is not finite
            norm = float(np.linalg.norm(gradient.astype(np.float64)))
        if norm <= clip_norm or not math.isfinite(norm):
            return gradient
        if self._clipped is None:
            self._clipped = np.empty(self.trained_size, gradient.dtype)
        return np.multiply(gradient, clip_norm / norm, out=self._clipped)

    def _average(self, latest: Floats, observed: Floats, out: Floats) -> None:
        with np.errstate(all="ignore"):
            np.subtract(observed, latest, out=self._difference)
            self._difference *= self._rates
            np.add(latest, self._difference, out=out)
