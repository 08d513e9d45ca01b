"""A training step: gather a minibatch from the dataset, run it forwards and backwards."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from dist_net.autodiff import BoundPlan, Plan
from dist_net.autodiff.kernels.gemm import Gemm, fastest_gemm
from dist_net.autodiff.kernels.memory import Arena
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.data import AugmentedSamples, Dataset, epoch_order
from dist_net.data.samples import PrefetchedSamples, samples_of
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Model
from dist_net.optim import LearningRate
from dist_net.training.worker.local_steps import LocalSteps
from dist_net.vector import Vector
from dist_net.wire.messages import StepSettings

MAX_PLANS = 4  # the whole minibatch, a share of it, and the last minibatch of each


class Minibatch(NamedTuple):
    """The arrays for minibatches of one size."""

    inputs: NDArray[Any]
    targets: NDArray[Any]


class Binding(NamedTuple):
    """A plan bound to a pair of vectors, kept alive because their ids are the key."""

    bound: BoundPlan
    weights: Vector
    gradient: Vector


class TrainingStep:
    """Compute gradients of a model over minibatches of a dataset's shuffled epochs.

    A plan and its arrays are made once for each size of minibatch, up to ``MAX_PLANS``, and a plan
    is bound once to each pair of weights and gradient vector, so that the steady state allocates
    nothing.

    The random numbers of a layer such as Dropout depend only on ``seed``, ``epoch`` and ``start``:
    every worker draws the same numbers for a minibatch, and minibatches differ.

    If the model has convolutions, ``threads`` threads share its operations and BLAS has one.
    Otherwise BLAS uses the threads: its threads wake up sooner, which matters for products that
    take a fraction of a millisecond.
    """

    def __init__(self, model: Model, dataset: Dataset, seed: int, threads: int = 1) -> None:
        self._model = model
        pool_threads, blas_threads = (threads, 1) if model.has_convolutions else (1, threads)
        # BLAS parallelizes whole products only.
        gemm = fastest_gemm() if blas_threads == 1 else Gemm()
        self._pool = ThreadPool(pool_threads, gemm)
        self._blas = ThreadpoolController().select(user_api="blas")
        self._inputs = samples_of(dataset.train_inputs)
        self._targets = samples_of(dataset.train_targets)
        self._augmented = self._inputs if isinstance(self._inputs, AugmentedSamples) else None
        self._prefetched = self._inputs if isinstance(self._inputs, PrefetchedSamples) else None
        self._seed = seed
        # Counter-based (Salmon et al. 2011): jumping to a minibatch's numbers is cheap.
        self._bits = np.random.Philox(seed)
        self._bits_state = self._bits.state
        self._generator = np.random.Generator(self._bits)
        self._epoch = -1
        self._start = 0
        self._order: NDArray[np.int64] = np.empty(0, np.int64)
        self._arena = Arena()  # of the plans of all sizes
        self._plans: dict[int, tuple[Plan, Minibatch]] = {}
        self._bound: dict[tuple[int, int, int], Binding] = {}
        self._size = 0

    @property
    def classifies(self) -> bool:
        """Whether targets are classes, so that a minibatch counts correct predictions."""
        return self._model.classifies(self._targets.shape, self._targets.dtype)

    def gather(self, epoch: int, start: int, stop: int) -> None:
        """Gather samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""
        if epoch != self._epoch:
            self._order = epoch_order(self._seed, epoch, len(self._targets))
            self._epoch = epoch
        self._start = start
        self._size = stop - start
        _, minibatch = self._plan(self._size)
        chosen = self._order[start:stop]
        if self._augmented is None:
            self._inputs.read(chosen, minibatch.inputs)
        else:
            self._augmented.read_augmented(chosen, minibatch.inputs, self._seed, epoch)
        self._targets.read(chosen, minibatch.targets)
        if self._prefetched is not None:  # usually the lease's next minibatch
            self._prefetched.prefetch(self._order[stop : stop + self._size])

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Write the mean gradient of the gathered minibatch; return (summed loss, number correct).

        Both vectors are borrowed from now on. Use few different pairs: each is bound anew.
        """
        key = (self._size, id(weights), id(gradient))
        binding = self._bound.get(key)
        if binding is None:
            plan, minibatch = self._plan(self._size)
            bound = self._model.bind_training(plan, *minibatch, weights, gradient)
            binding = self._bound[key] = Binding(bound, weights, gradient)
        self._draw_for_minibatch()
        with nullcontext() if self._pool.threads == 1 else self._blas.limit(limits=1):
            loss, right, *_ = binding.bound.run()
        return float(loss) * self._size, int(right)

    def _draw_for_minibatch(self) -> None:
        """Jump to the gathered minibatch's random numbers, a sequence of 2**128 blocks."""
        self._bits_state["state"]["counter"][:] = 0, 0, self._start, self._epoch
        self._bits.state = self._bits_state

    def _plan(self, size: int) -> tuple[Plan, Minibatch]:
        if size not in self._plans:
            if len(self._plans) == MAX_PLANS:
                self._plans.clear()
                self._bound.clear()
            targets = np.empty((size, *self._targets.shape), self._targets.dtype)
            self._plans[size] = (
                self._model.compile_training(
                    size,
                    self._generator,
                    self._pool,
                    self._targets.shape,
                    targets.dtype,
                    self._arena,
                ),
                Minibatch(np.empty((size, *self._inputs.shape), self._inputs.dtype), targets),
            )
        return self._plans[size]


def local_steps(
    recipe: Recipe, dataset: Dataset, settings: StepSettings, threads: int = 1
) -> LocalSteps:
    """Return the local steps of a recipe, with the settings of its run."""
    step = TrainingStep(recipe.model, dataset, settings.seed, threads)
    limits = settings.clip_norm or None, settings.average_decay or None
    rule = recipe.update_rule(settings.optimizer, *limits)
    schedule = recipe.schedule, len(dataset.train_targets), settings.epochs
    return LocalSteps(
        step, rule, settings.batch_size, LearningRate(settings.learning_rate, *schedule)
    )
