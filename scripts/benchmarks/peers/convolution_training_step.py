"""This project's training step of ``fashion-mnist-conv``, measured as that of PyTorch is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import synthetic
from benchmarks.peers.orders import Peer
from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import Recipe, load_recipe
from dist_net.training.run.fit import SingleProcess

RECIPE = "fashion-mnist-conv"
SEED = 0


def load(_directory: Path, batch: int, threads: int) -> Callable[[], np.float32]:
    """A function that takes a step on the next minibatch of random images; it gives the loss."""
    return steps_of(load_recipe(RECIPE).recipe, synthetic.dataset(), batch, threads)


def steps_of(
    recipe: Recipe, dataset: Dataset, batch: int, threads: int
) -> Callable[[], np.float32]:
    """A function that takes a recipe's step on the next whole minibatch; it gives the loss."""
    threadpool_limits(threads)
    training = SingleProcess(recipe, dataset, seed=SEED, threads=threads)
    count = len(dataset.train_targets) // batch
    position = 0

    def step() -> np.float32:
        nonlocal position
        summed_loss, _ = training.train(0, position * batch, (position + 1) * batch)
        position = (position + 1) % count
        return np.float32(summed_loss / batch)

    return step


if __name__ == "__main__":
    Peer("dist-net", load).obey()
