"""Local steps: updates that a process takes by itself, from a given training state; no I/O.

Everything that trains takes its steps here: a worker of a cluster, a replay, and ``fit``. The
gradients of minibatches come from the engine, or from a recipe's own function.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from dist_net.autodiff import BoundPlan, Plan
from dist_net.autodiff.arrays import Arena
from dist_net.autodiff.kernels.gemm import fastest_gemm
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.data import AugmentedSamples, Dataset, epoch_order
from dist_net.data.samples import SampleIndices, samples_of
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Model
from dist_net.optim import LearningRate, UpdateRule, schedule_named
from dist_net.wire.lease_steps import FEWEST_SAMPLES, LeaseSteps
from dist_net.wire.messages import StepSettings


class Minibatch(NamedTuple):
    """Samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int


class MinibatchGradient(NamedTuple):
    """The summed loss, the mean gradient, and the number of samples predicted right.

    In the places of buffers, ``gradient`` has observations: see ``dist_net.optim.rule``.
    """

    loss_sum: float
    gradient: Vector
    correct: float = 0.0


GradientFunction = Callable[[Vector, Minibatch], MinibatchGradient]
"""Return the gradient at these weights; it is borrowed until the next call.

It must be a function of the weights, the minibatch and the run's seed alone, so that any worker and
any replay computes it again. The weights are borrowed as long as the function exists.
"""


class LocalSteps:
    """Take the local steps of leases by ``rule``, with the gradients of ``gradient_at``.

    ``learning_rate_at`` returns the learning rate after a number of samples of the run, for
    minibatches of ``batch_size``; ``rate_factor`` scales it, and ``learning_rate`` is the last.
    ``state`` is the training state after the last step, or the mean of the parts after a lease of
    several; it is valid until the next step. ``loss_sum`` and ``correct`` are sums over the last
    lease. ``due`` has the weights and the minibatch of the next step. ``digest_of`` returns a
    digest of a minibatch's samples as this process reads them. Allocate two vectors at first, and a
    third with the first lease of several parts.
    """

    def __init__(
        self,
        gradient_at: GradientFunction,
        rule: UpdateRule,
        batch_size: int,
        learning_rate_at: Callable[[float], float],
        digest_of: Callable[[Minibatch], str] = str,
    ) -> None:
        self.rule = rule
        self.digest_of = digest_of
        self.learning_rate_at = learning_rate_at
        self.rate_factor, self.learning_rate = 1.0, 0.0
        self.gradient_at = gradient_at
        self.batch_size = batch_size
        # A step reads one state and writes the other.
        states: list[Vector] = [np.zeros(rule.state_size, np.float32) for _ in range(2)]
        self._latest, self._other = ((state, state[: rule.size]) for state in states)
        self._mean: Vector | None = None
        self.state = self._latest[0]
        self.loss_sum, self.correct = 0.0, 0
        self.due = self._latest[1], Minibatch(0, 0, 0)

    def close(self) -> None:
        """Release what other processes use."""

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of ``lease`` from ``base``; yield before each minibatch."""
        self.loss_sum, self.correct, self.state = 0.0, 0, base
        if lease.parts == 1:
            yield from self._take_part(base, lease)
            return
        if self._mean is None:
            self._mean = np.empty(self.rule.state_size, np.float32)
        for number, part in enumerate(lease.split()):
            yield from self._take_part(base, part)
            if number:
                self._mean += self._latest[0]
            else:
                np.copyto(self._mean, self._latest[0])
        self._mean *= np.float32(1 / lease.parts)
        self.state = self._mean

    def _take_part(self, base: Vector, part: LeaseSteps) -> Iterator[None]:
        if base is not self._latest[0]:
            np.copyto(self._latest[0], base)
        loss_sum = right = 0.0
        share = part.batch_size / self.batch_size
        for number, (start, stop) in enumerate(pairwise(part.edges)):
            state, weights = self._latest
            self.due = weights, Minibatch(part.epoch, start, stop)
            yield
            loss, gradient, correct = self.gradient_at(*self.due)
            scheduled = self.learning_rate_at(part.progress + number * part.pace)
            self.learning_rate = self.rate_factor * scheduled
            self.rule.step(state, gradient, self.learning_rate, self._other[0], share)
            self._latest, self._other = self._other, self._latest
            self.state = self._latest[0]
            loss_sum += loss
            right += correct
        self.loss_sum += loss_sum
        self.correct += round(right)


LocalStepsOf = Callable[[StepSettings], LocalSteps]
"""Return the local steps for the settings of a run."""


MAX_PLANS = 4  # the whole minibatch, a share of it, and the last minibatch of each


class SizedPlan(NamedTuple):
    """The plan and the arrays for minibatches of one size."""

    plan: Plan
    inputs: NDArray[Any]
    targets: NDArray[Any]


class ShuffledRows:
    """The indices of a dataset's samples in the shuffled order of each epoch."""

    def __init__(self, seed: int, samples: int) -> None:
        self._seed = seed
        self._samples = samples
        self._epoch = -1
        self._order: SampleIndices = np.empty(0, np.int64)

    def of(self, minibatch: Minibatch) -> SampleIndices:
        """Return the indices of a minibatch, a read-only view ``(samples,)`` int64."""
        epoch, start, stop = minibatch
        if epoch != self._epoch:
            self._order = epoch_order(self._seed, epoch, self._samples)
            self._order.flags.writeable = False
            self._epoch = epoch
        return self._order[start:stop]


class TrainingStep:
    """The gradient function of a model, over minibatches of a dataset's shuffled epochs.

    A plan and its arrays are made once for each size of minibatch, up to ``MAX_PLANS``, and a plan
    is bound once to each weight vector, so that the steady state allocates nothing. Use few of
    them.

    The random numbers of a layer such as Dropout depend only on ``seed`` and the minibatch's
    ``epoch`` and ``start``: every worker draws the same numbers for it, and minibatches differ.

    ``threads`` threads share its operations, and BLAS has one if they are several: BLAS's own wait
    for each other, so that another process on one of their cores made a step ten times as long.
    """

    def __init__(self, model: Model, dataset: Dataset, seed: int, threads: int = 1) -> None:
        self._model, self._dataset, self._in_parts = model, dataset, False
        self._pool = ThreadPool(threads, fastest_gemm())
        self._blas = ThreadpoolController().select(user_api="blas")
        self._inputs = samples_of(dataset.train_inputs)
        self._targets = samples_of(dataset.train_targets)
        self._augmented = self._inputs if isinstance(self._inputs, AugmentedSamples) else None
        self._seed = seed
        # Counter-based (Salmon et al. 2011): jumping to a minibatch's numbers is cheap.
        self._bits = np.random.Philox(seed)
        self._bits_state = self._bits.state
        self._generator = np.random.Generator(self._bits)
        self._rows = ShuffledRows(seed, len(self._targets))
        self.gradient = np.empty(model.layout.size, np.float32)  # of the plans bound from now on
        self._arena = Arena()  # of the plans of all sizes
        self._plans: dict[int, SizedPlan] = {}
        # By size and id of the weights, which are kept alive with it.
        self._bound: dict[tuple[int, int], tuple[BoundPlan, Vector]] = {}

    def of_part(self, gradient: Vector) -> Self:
        """Return the step of a part of each minibatch, which writes to ``gradient``."""
        step = type(self)(self._model, self._dataset, self._seed)
        step.gradient, step._in_parts = gradient, True
        return step

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        """Read the minibatch and run it forwards and backwards; see ``GradientFunction``."""
        with nullcontext() if self._pool.threads == 1 else self._blas.limit(limits=1):
            loss, right, *_ = self.bound(weights, minibatch).run()
        size = minibatch.stop - minibatch.start
        return MinibatchGradient(float(loss) * size, self.gradient, float(right))

    def digest(self, minibatch: Minibatch) -> str:
        """Return the SHA-256 of a minibatch as this process reads it."""
        arrays = self._arrays(minibatch.stop - minibatch.start)
        self._read(minibatch, *arrays)
        return hashlib.sha256(b"".join(each.data for each in arrays)).hexdigest()

    def bound(self, weights: Vector, minibatch: Minibatch) -> BoundPlan:
        """Read the minibatch; return the plan that runs it forwards and backwards."""
        size = minibatch.stop - minibatch.start
        if size not in self._plans:
            if len(self._plans) == MAX_PLANS:
                self._plans.clear()
                self._bound.clear()
            targets = self._targets
            facts = self._generator, self._pool, (targets.dtype, targets.shape), self._arena
            compiled = self._model.compile_training(size, *facts, self._in_parts)
            self._plans[size] = SizedPlan(compiled, *self._arrays(size))
        plan = self._plans[size]
        self._read(minibatch, plan.inputs, plan.targets)
        key = (size, id(weights))
        if key not in self._bound:
            bound = self._model.bind_training(*plan, weights, self.gradient)
            self._bound[key] = bound, weights
        # Jump to the minibatch's random numbers, a sequence of 2**128 blocks.
        self._bits_state["state"]["counter"][:] = 0, 0, minibatch.start, minibatch.epoch
        self._bits.state = self._bits_state
        return self._bound[key][0]

    def _read(self, minibatch: Minibatch, inputs: NDArray[Any], targets: NDArray[Any]) -> None:
        rows = self._rows.of(minibatch)
        with self._dataset.turn:
            if self._augmented is None:
                self._inputs.read(rows, inputs)
            else:
                self._augmented.read_augmented(rows, inputs, self._seed, minibatch.epoch)
            self._targets.read(rows, targets)

    def _arrays(self, size: int) -> list[NDArray[Any]]:
        parts = self._inputs, self._targets
        return [np.empty((size, *each.shape), each.dtype) for each in parts]


def gradient_function(
    recipe: Recipe, dataset: Dataset, seed: int, threads: int = 1
) -> GradientFunction:
    """Return the gradient function of a recipe's network, or its own."""
    trained = recipe.trained
    if isinstance(trained, Model):
        return TrainingStep(trained, dataset, seed, threads)
    rows = ShuffledRows(seed, recipe.samples)
    return lambda weights, minibatch: MinibatchGradient(*trained.at(weights, rows.of(minibatch)))


def local_steps(
    recipe: Recipe,
    dataset: Dataset,
    settings: StepSettings,
    threads: int = 1,
    gradient_at: GradientFunction | None = None,
    samples: int | None = None,
) -> LocalSteps:
    """Return a recipe's local steps for a run; ``gradient_at`` replaces the recipe's function.

    An epoch has ``samples``, by default as many as the dataset.
    """
    gradient_at = gradient_at or gradient_function(recipe, dataset, settings.seed, threads)
    rule = recipe.update_rule(settings.optimizer, settings.clip_norm, settings.average_decay)
    samples = samples or len(dataset.train_targets)
    schedule = schedule_named(recipe.schedule), samples, settings.epochs
    rate_at = LearningRate(settings.learning_rate, *schedule)
    digest_of = gradient_at.digest if isinstance(gradient_at, TrainingStep) else str
    return LocalSteps(gradient_at, rule, settings.batch_size, rate_at, digest_of)


def rehearse(recipe: Recipe, dataset: Dataset) -> None:
    """Take a step and discard it, so that no round waits while this process loads compiled code."""
    settings = StepSettings.of(recipe, seed=0, optimizer=str(recipe.optimizer))
    local = local_steps(recipe, dataset, settings)
    base = local.rule.initial(recipe.initial_weights(seed=0))
    lease = LeaseSteps(0, 0, FEWEST_SAMPLES, 0, FEWEST_SAMPLES, FEWEST_SAMPLES)
    for _ in local.take(base, lease):
        pass
