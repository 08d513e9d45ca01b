"""PyTorch's training step of the whole EfficientNet-Lite0: eager, with its own AdamW."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import lite0_task
from benchmarks.peers.lite0_training_step import TRAINED
from benchmarks.peers.orders import Peer
from benchmarks.peers.pytorch_lite0 import TorchLite0
from dist_net.data import epoch_order


def load(_directory: Path, batch: int, threads: int) -> Callable[[], NDArray[np.float32]]:
    """A function that takes a step on the next minibatch of images; it gives the loss."""
    import torch

    torch.set_num_threads(threads)
    network = TorchLite0(observes=sys.argv[2] == TRAINED)
    of = lite0_task.OPTIMIZER
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lite0_task.LEARNING_RATE,
        (of.beta1, of.beta2),
        of.epsilon,
        of.weight_decay,
    )
    cross_entropy = torch.nn.CrossEntropyLoss()
    dataset = lite0_task.dataset()
    images, targets = map(torch.from_numpy, (dataset.train_inputs, dataset.train_targets))
    batches = torch.from_numpy(epoch_order(lite0_task.SEED, 0, len(targets))).split(batch)
    position = 0

    def step() -> NDArray[np.float32]:
        nonlocal position
        chosen = batches[position]
        # The last batch may be a short one: never used.
        position = (position + 1) % (len(targets) // batch)
        optimizer.zero_grad()
        loss = cross_entropy(network(images[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
        value: NDArray[np.float32] = loss.detach().numpy()
        return value

    return step


if __name__ == "__main__":
    Peer("torch", load).obey()
