"""An autoencoder: handwritten digits of 64 pixels, by way of 8 numbers.

Train it with ``dist-net train examples/autoencoder.py``, in seconds.
"""

import numpy as np

from dist_net import Recipe
from dist_net.autodiff import reshape
from dist_net.data import Dataset, dataset_named
from dist_net.nn import Conv2D, Conv2DTranspose, Dense, Flatten, Lambda, Rescale, Sequential, relu

encoder = Sequential(
    Rescale(),
    Lambda(lambda x: x[..., None]),
    Conv2D(16, 3, 2, activation=relu),
    Conv2D(32, 3, 2, activation=relu),
    Flatten(),
    Dense(8),
)
decoder = Sequential(
    Dense(2 * 2 * 32, relu),
    Lambda(lambda x: reshape(x, (-1, 2, 2, 32))),
    Conv2DTranspose(16, 3, 2, activation=relu),
    Conv2DTranspose(1, 3, 2),
)


def digits() -> Dataset:
    """Return the digits as inputs, and their pixels from 0 to 1 as targets."""
    source = dataset_named("digits")
    train, test = (np.asarray(each) for each in (source.train_inputs, source.test_inputs))
    targets = [(each[..., None] / 255).astype(np.float32) for each in (train, test)]
    return Dataset("digits to themselves", train, targets[0], test, targets[1])


recipe = Recipe(
    Sequential(encoder, decoder),
    digits,
    (8, 8),
    loss="binary_cross_entropy_of_logits",
    learning_rate=0.005,
    epochs=12,
)
