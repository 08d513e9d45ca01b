"""Minibatches of the caller's own: from a loader, such as PyTorch's, or from a function."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import integer
from dist_net.data import Dataset
from dist_net.errors import DatasetError, SettingError
from dist_net.ground.vector import Vector
from dist_net.nn import Model
from dist_net.training.worker.local_steps import Minibatch, MinibatchGradient
from dist_net.training.worker.step import TrainingStep

Pair = tuple[NDArray[Any], NDArray[Any]]
"""The inputs and the targets of a batch."""

Iteration = Iterable[Any] | Callable[[], Iterable[Any]]


def pairs(model: Model, batches: Iteration) -> Iterator[Pair]:
    """Yield batches as arrays; raise SettingError for no batches, DatasetError for unsuitable."""
    source = batches() if callable(batches) else batches
    if hasattr(source, "__array__") or not hasattr(source, "__iter__"):
        raise SettingError(
            f"no targets for inputs of type {type(batches).__name__}; expected fit(model, inputs, "
            f"targets), or an iterable of batches (inputs, targets), such as a DataLoader"
        )
    for batch in source:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DatasetError(f"a batch is {batch!r:.80}; expected a tuple (inputs, targets)")
        inputs, targets = model.inputs_of(batch[0]), model.targets_of(batch[1])
        model.require_inputs(inputs)
        if not 0 < len(inputs) == len(targets):
            found = f"{len(targets)} targets for {len(inputs)} inputs"
            raise DatasetError(f"a batch has {found}; expected one per input, and at least one")
        yield inputs, targets


class Batches:
    """The batches of an iterable, or of a function that returns one, in their order.

    An epoch has ``steps`` of them; None: the length of the iterable. Where an iteration ends,
    another begins. ``samples`` counts those that were taken. Raise the errors of ``pairs``.
    """

    def __init__(self, model: Model, batches: Iteration, steps: int | None) -> None:
        self._pairs, self.samples = self._endless(model, batches), 0
        self.first = next(self._pairs)
        self._next: Pair | None = self.first
        try:
            self.steps = integer("fit: steps", len(batches) if steps is None else steps, 1)  # type: ignore[arg-type]
        except TypeError:
            raise SettingError("an unknown number of batches; expected steps=N") from None

    def take(self) -> Pair:
        """Return the next batch; raise DatasetError if its targets are not like the first."""
        inputs, targets = self._next or next(self._pairs)
        self._next = None
        given, first = ((each.shape[1:], each.dtype.kind) for each in (targets, self.first[1]))
        if given != first:
            raise DatasetError(f"the targets of a batch are {given}; expected {first}, as before")
        self.samples += len(targets)
        return inputs, targets

    def _endless(self, model: Model, batches: Iteration) -> Iterator[Pair]:
        while True:
            is_empty = True
            for pair in pairs(model, batches):
                is_empty = False
                yield pair
            if is_empty:
                raise DatasetError(
                    "the batches are exhausted; expected a function that returns new ones for each "
                    "epoch, or fewer steps and epochs"
                )


class BatchStep(TrainingStep):
    """The gradient function of the next of ``batches``, which has its own number of samples."""

    def __init__(
        self, batches: Batches, model: Model, dataset: Dataset, seed: int, threads: int
    ) -> None:
        super().__init__(model, dataset, seed, threads)
        self._batches = batches

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        self._batch = self._batches.take()
        stop = minibatch.start + len(self._batch[0])
        return super().__call__(weights, minibatch._replace(stop=stop))

    def _read(self, minibatch: Minibatch, inputs: NDArray[Any], targets: NDArray[Any]) -> None:
        np.copyto(inputs, self._batch[0])
        np.copyto(targets, self._batch[1])
