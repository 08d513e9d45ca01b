"""Training in one process: the same step and the same update rules, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dist_net.data import Dataset
from dist_net.optim import start_rule
from dist_net.recipes.recipe import Recipe
from dist_net.training.step import TrainingStep
from dist_net.vector import Vector


class EpochResult(NamedTuple):
    """What an epoch gave: means over its samples, each before the update that it led to.

    ``accuracy`` is None where targets are no classes.
    """

    epoch: int
    loss: float
    accuracy: float | None


class SingleProcess:
    """A recipe's training from its first weights, minibatch by minibatch, in this process.

    ``threads`` is how many share the work of a step; see ``TrainingStep``.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, seed: int = 0, threads: int = 1) -> None:
        self._recipe = recipe
        self._samples = len(dataset.train_targets)
        self._step = TrainingStep(recipe.model, dataset, seed, threads)
        layout = recipe.model.layout
        self._rule = start_rule(recipe.optimizer, layout.shapes, layout.momenta, recipe.clip_norm)
        self._gradient = np.empty(layout.size, np.float32)
        self.weights: Vector = recipe.initial_weights(seed)
        self.updates = 0

    def step(self, epoch: int, start: int, stop: int) -> tuple[float, int]:
        """Trains on one minibatch; gives its summed loss and how many were right."""
        self._step.gather(epoch, start, stop)
        result = self._step.run(self.weights, self._gradient)
        recipe = self._recipe
        rate = recipe.schedule(epoch + start / self._samples, recipe.epochs)
        self.updates += 1
        self._rule.update(
            self.weights,
            [self._gradient],
            self.weights,
            [rate * recipe.learning_rate],
            self.updates,
        )
        return result

    def epochs(self) -> Iterator[EpochResult]:
        for epoch in range(self._recipe.epochs):
            results = [
                self.step(epoch, start, min(start + self._recipe.batch_size, self._samples))
                for start in range(0, self._samples, self._recipe.batch_size)
            ]
            loss, right = map(sum, zip(*results, strict=True))
            accuracy = right / self._samples if self._step.classifies else None
            yield EpochResult(epoch, loss / self._samples, accuracy)
