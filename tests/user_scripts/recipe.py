"""A recipe with a dataset of its own."""

import numpy as np

from dist_net import Recipe
from dist_net.data import Dataset
from dist_net.nn import BatchNorm, Conv2D, Dense, GlobalAveragePool, Lambda, Sequential, relu


def dataset() -> Dataset:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (200, 16, 16, 3), np.uint8)
    labels = (images[..., 0].mean((1, 2)) > 127).astype(np.int64)
    return Dataset("red", images[:160], labels[:160], images[160:], labels[160:], ("dark", "red"))


recipe = Recipe(
    network=Sequential(Conv2D(8, 3), BatchNorm(), Lambda(relu), GlobalAveragePool(), Dense(2)),
    dataset=dataset,
    input_shape=(16, 16, 3),
    optimizer="momentum",
    learning_rate=0.05,
    epochs=3,
)
