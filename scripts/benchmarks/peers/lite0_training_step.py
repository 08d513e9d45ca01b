"""This project's training step of the whole EfficientNet-Lite0, measured as PyTorch's is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peers import lite0_task
from benchmarks.peers.convolution_training_step import steps_of
from benchmarks.peers.orders import Peer
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import FrozenBatchNorm

TRAINED = "trained"
FROZEN = "frozen"
"""What batch norm does, by a process's argument: use the minibatch's statistics, or its own."""


def load(_directory: Path, batch: int, threads: int) -> Callable[[], np.float32]:
    """A function that takes a step on the next minibatch of images; it gives the loss."""
    network = lite0.EfficientNetLite0()
    recipe = Recipe(
        FrozenBatchNorm(network) if sys.argv[2] == FROZEN else network,
        lite0_task.dataset,
        lite0.INPUT_SHAPE,
        optimizer=lite0_task.OPTIMIZER,
        learning_rate=lite0_task.LEARNING_RATE,
        weights=lite0.read_weights(),
    )
    return steps_of(recipe, lite0_task.dataset(), batch, threads)


if __name__ == "__main__":
    Peer("dist-net", load).obey()
