"""PyTorch modules as recipes: parameters and buffers are views of one flat vector."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from dist_net.data.samples import SampleIndices
from dist_net.errors import RecipeError
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe

EVALUATION_BATCH = 256
COUNTER = "num_batches_tracked"
"""The steps of a batch norm: with ``momentum=None``, its buffers are the means of all of them."""


class Task:
    """A module, its loss and its samples; ``dist_net.adapters.jax`` has the class for functions.

    ``loss(outputs, targets)`` returns the mean over a minibatch. ``dataset`` has pairs of an input
    and a target, and so has ``test``, which is evaluated; a ``TensorDataset`` is read fastest.
    Buffers other than finite float32, such as a mask, keep their first value, except the counters
    of batch norms.

    This task alone uses the module from now on, for one thread at a time. Its random numbers depend
    on the minibatch, and PyTorch computes with ``threads`` threads and deterministic algorithms in
    this process, so that a replay computes the same bits. Raise RecipeError for parameters that are
    not float32.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        dataset: Dataset[Any],
        test: Dataset[Any] | None = None,
        threads: int = 1,
    ) -> None:
        if isinstance(dataset, DataLoader) or isinstance(test, DataLoader):
            raise RecipeError("a DataLoader, which chooses samples; expected its .dataset")
        if not callable(loss):
            raise RecipeError(
                f"loss of type {type(loss).__name__}; expected Task(module, loss, dataset)"
            )
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        self.module, self._loss, self._dataset, self._test = module, loss, dataset, test
        for part in module.modules():
            if isinstance(getattr(part, COUNTER, None), Tensor):  # to be averaged among workers
                setattr(part, COUNTER, getattr(part, COUNTER).float())
        arrays = [*module.named_parameters(), *module.named_buffers()]
        self._trained = {name: each for name, each in arrays if each.requires_grad}
        others = {name: each for name, each in arrays if not each.requires_grad}
        moving = {n for n, b in others.items() if b.dtype == torch.float32 and b.isfinite().all()}
        self._buffers = {name: b for name, b in others.items() if name in moving}
        self._constant = [(b, b.clone()) for name, b in others.items() if name not in moving]
        self._lock = RLock()
        if wrong := [name for name, p in self._trained.items() if p.dtype != torch.float32]:
            raise RecipeError(f"parameters {wrong} are no float32; convert them: module.float()")
        views = [*self._trained.values(), *self._buffers.values()]
        vector = torch.cat([each.detach().flatten() for each in views])
        gradient = torch.zeros_like(vector)
        start = 0
        for each in views:
            stop = start + each.numel()
            each.data = vector[start:stop].view(each.shape)
            if each.requires_grad:  # backward() adds to it
                each.grad = gradient[start:stop].view(each.shape)
                self._trained_size = stop
            start = stop
        self._values, self._gradient = vector.numpy(), gradient.numpy()

    def recipe(self, **settings: Any) -> Recipe:
        """Return the recipe that trains the module, with these settings of a ``Recipe``."""
        return Recipe(
            gradient=self.gradient,
            weights=self._values.copy(),
            samples=len(self._dataset),
            evaluate=None if self._test is None else self.evaluate,
            parameters={name: tuple(each.shape) for name, each in self._trained.items()},
            buffers={name: tuple(each.shape) for name, each in self._buffers.items()},
            state_dict=self.state_dict,
            **settings,
        )

    def gradient(self, weights: Vector, rows: SampleIndices) -> tuple[float, Vector]:
        """Return the summed loss and the mean gradient, borrowed; see ``Recipe``."""
        with self._lock:
            self._values[:] = weights
            self._gradient.fill(0)
            self.module.train()
            torch.manual_seed(crc32(rows.tobytes()))
            inputs, targets = read(self._dataset, rows)
            mean = self._loss(self.module(inputs), targets)
            mean.backward()
            self._gradient[self._trained_size :] = self._values[self._trained_size :]
            for buffer, first in self._constant:
                buffer.copy_(first)
            return mean.item() * len(rows), self._gradient

    def evaluate(self, weights: Vector) -> dict[str, float | None]:
        """Return the mean loss on the test samples, and the accuracy if the targets are classes."""
        assert self._test is not None
        samples, loss_sum, are_right = len(self._test), 0.0, []
        for rows in np.array_split(np.arange(samples), samples // EVALUATION_BATCH + 1):
            with self._lock, torch.no_grad():  # another thread may compute gradients in between
                self._values[:] = weights
                self.module.eval()
                inputs, targets = read(self._test, rows)
                outputs = self.module(inputs)
                loss_sum += self._loss(outputs, targets).item() * len(rows)
            if targets.dtype == torch.int64 and outputs.shape[:-1] == targets.shape:
                are_right.append(outputs.argmax(-1) == targets)
        accuracy = torch.cat(are_right).float().mean().item() if are_right else None
        return {"test_loss": loss_sum / samples, "test_accuracy": accuracy}

    def state_dict(self, weights: Vector) -> dict[str, Tensor]:
        """Return a copy of the module's state dict with these weights."""
        with self._lock:
            self._values[:] = weights
            return {
                name: each.round().long() if name.endswith(COUNTER) else each.clone()
                for name, each in self.module.state_dict().items()
            }


def read(dataset: Dataset[Any], rows: SampleIndices) -> Any:
    if isinstance(dataset, TensorDataset):
        indices = torch.tensor(rows)  # a copy: ``rows`` is read-only
        return [each[indices] for each in dataset.tensors]
    return default_collate([dataset[row] for row in rows])
