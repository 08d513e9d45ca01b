"""The nine nets of ``scripts/bench nets``, and this project's training step of each, with Adam.

Inputs and targets are random and wait in memory, and each peer trains on one minibatch of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.convolution_training_step import SEED, steps_of
from benchmarks.peers.orders import Peer
from dist_net import autodiff as ad
from dist_net import nn
from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import Recipe
from dist_net.optim import Adam

LEARNING_RATE = 1e-3
WORDS = 64  # in the transformer's vocabulary
CODES = 1000  # in each column of the table


@dataclass(frozen=True)
class Net:
    """A net, its minibatch, and the shape of one input; ``kinds``: how many integers it may be.

    ``kinds`` is 0 for floats. ``classes`` is 0 if the net predicts a number.
    """

    batch: int
    network: Callable[[], nn.Layer]
    shape: tuple[int, ...]
    kinds: int = 0
    target_shape: tuple[int, ...] = ()
    classes: int = 10

    def arrays(self) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """Inputs and targets of one minibatch, the same at each call."""
        random = np.random.default_rng(SEED)
        shape = self.batch, *self.shape
        inputs: NDArray[np.generic] = random.standard_normal(shape, np.float32)
        if self.kinds:
            inputs = random.integers(0, self.kinds, shape, np.int64)
        if not self.classes:
            return inputs, random.standard_normal((self.batch, 1), np.float32)
        return inputs, random.integers(0, self.classes, (self.batch, *self.target_shape), np.int64)


def normalized(filters: int, stride: int = 1, activation: str | None = "relu") -> list[nn.Layer]:
    """A 3x3 convolution and batch norm."""
    convolution = nn.Conv2D(filters, 3, stride, 1, use_bias=False)
    return [convolution, nn.BatchNorm(activation=activation)]


class Shortcut:
    """relu(x + layers(x)), with a pointwise convolution of x where the shape changes."""

    def __init__(self, filters: int, stride: int) -> None:
        self.filters, self.stride = filters, stride

    def __call__(self, x: ad.Expression, scope: nn.Scope) -> ad.Expression:
        layers = [*normalized(self.filters, self.stride), *normalized(self.filters, 1, None)]
        change = nn.Sequential(*layers)(x, scope.child("change"))
        if self.stride > 1:
            narrow = nn.Conv2D(self.filters, 1, self.stride, 0, use_bias=False)
            x = nn.Sequential(narrow, nn.BatchNorm())(x, scope.child("shortcut"))
        return ad.relu(x + change)


def resnet() -> nn.Layer:
    blocks = [Shortcut(16, 1), Shortcut(32, 2), Shortcut(64, 2)]
    return nn.Sequential(normalized(16), blocks, nn.GlobalAveragePool(), nn.Dense(10))


def twice(filters: int) -> list[nn.Layer]:
    return [nn.Conv2D(filters, 3, activation="relu") for _ in range(2)]


def unet() -> nn.Layer:
    inner = nn.Sequential(nn.MaxPool(2), twice(64), nn.Conv2DTranspose(32, 2, 2))
    middle = nn.Concatenate(nn.Sequential(), inner)
    outer = nn.Sequential(nn.MaxPool(2), twice(32), middle, twice(32), nn.Conv2DTranspose(16, 2, 2))
    return nn.Sequential(
        twice(16), nn.Concatenate(nn.Sequential(), outer), twice(16), nn.Conv2D(10, 1)
    )


def block() -> list[nn.Layer]:
    return [
        nn.Residual(nn.LayerNorm(), nn.MultiHeadAttention(4)),
        nn.Residual(nn.LayerNorm(), nn.Dense(512, "gelu"), nn.Dense(128)),
    ]


def transformer() -> nn.Layer:
    blocks = [each for _ in range(4) for each in block()]
    return nn.Sequential(nn.Embedding(WORDS, 128), blocks, nn.LayerNorm(), nn.Dense(WORDS))


def columns(x: ad.Expression) -> ad.Expression:
    return x + ad.constant(np.arange(8) * CODES, np.int64)


def table() -> nn.Layer:
    embedded = nn.Lambda(columns), nn.Embedding(8 * CODES, 16), nn.Flatten()
    return nn.Sequential(embedded, nn.Dense(256, "relu"), nn.Dense(128, "relu"), nn.Dense(1))


def mlp(*units: int) -> nn.Layer:
    return nn.Sequential([nn.Dense(each, "relu") for each in units], nn.Dense(10))


def lenet() -> nn.Layer:
    layers = [
        layer
        for filters in (32, 64)
        for layer in (nn.Conv2D(filters, 3, activation="relu"), nn.MaxPool(2))
    ]
    return nn.Sequential(layers, nn.Flatten(), nn.Dense(128, "relu"), nn.Dense(10))


NETS = {
    "mlp": Net(32, lambda: mlp(128), (784,)),
    "wide mlp": Net(128, lambda: mlp(512, 512), (784,)),
    "table": Net(256, table, (8,), CODES, classes=0),
    "gru": Net(32, lambda: nn.Sequential(nn.GRU(64), nn.Dense(10)), (100, 32)),
    "lenet": Net(32, lenet, (28, 28, 1)),
    "transformer": Net(16, transformer, (64,), WORDS, (64,), WORDS),
    "u-net": Net(8, unet, (64, 64, 3), 0, (64, 64)),
    "resnet": Net(64, resnet, (32, 32, 3)),
    "lstm": Net(32, lambda: nn.Sequential(nn.LSTM(64), nn.Dense(10)), (100, 32)),
}

COMPILED = ("lenet", "transformer", "resnet", "lstm")  # by PyTorch too


def recipe(net: Net) -> tuple[Recipe, Dataset]:
    """The recipe of a net, and its minibatch as a dataset."""
    inputs, targets = net.arrays()
    names = tuple(map(str, range(net.classes)))
    dataset = Dataset("random", inputs, targets, inputs, targets, names)
    loss = ad.cross_entropy_of_logits if net.classes else nn.mean_squared_error
    found = Recipe(
        net.network(),
        lambda: dataset,
        input_shape=net.shape,
        input_dtype=inputs.dtype,
        loss=loss,
        optimizer=Adam(),
        learning_rate=LEARNING_RATE,
        batch_size=net.batch,
    )
    return found, dataset


def load(_directory: Path, batch: int, threads: int) -> Callable[[], np.float32]:
    """A function that takes a step of the net named on the command line; it returns the loss."""
    return steps_of(*recipe(NETS[sys.argv[2]]), batch, threads)


if __name__ == "__main__":
    Peer("dist-net", load).obey()
