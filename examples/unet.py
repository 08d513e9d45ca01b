"""A U-Net that marks the pixels of a disk beside a square, in noise (arXiv 1505.04597).

Train it with ``dist-net train examples/unet.py``, in seconds.
"""

import numpy as np

from dist_net import Recipe
from dist_net.data import Dataset
from dist_net.nn import (
    BatchNorm,
    Concatenate,
    Conv2D,
    Conv2DTranspose,
    Layer,
    MaxPool,
    Rescale,
    Sequential,
    relu,
)
from dist_net.optim import Cosine

SIZE = 16


def convolutions(filters: int) -> Layer:
    layers = [(Conv2D(filters, 3, use_bias=False), BatchNorm(activation=relu)) for _ in range(2)]
    return Sequential(*layers)


def level(filters: int, inner: Layer) -> Layer:
    """Return convolutions around a level of half the size, which adds its channels to its input."""
    enlarge = Conv2DTranspose(filters, 2, 2)
    below = Concatenate(Sequential(), Sequential(MaxPool(2), inner, enlarge))
    return Sequential(convolutions(filters), below, convolutions(filters))


network = Sequential(Rescale(), level(8, level(16, convolutions(16))), Conv2D(1, 1))


def drawn() -> Dataset:
    """Draw a square and a disk on noise, and the mask of the disk."""
    random = np.random.default_rng(0)
    images = random.integers(0, 80, (400, SIZE, SIZE, 1), np.uint8)
    masks = np.zeros(images.shape, np.float32)
    rows, columns = np.mgrid[:SIZE, :SIZE][..., None]
    for image, mask in zip(images, masks, strict=True):
        for is_disk in (False, True):
            down, across = (np.abs(each - random.uniform(4, SIZE - 4)) for each in (rows, columns))
            distance = np.hypot(down, across) if is_disk else np.maximum(down, across)
            inside = distance < random.uniform(3, 5)
            image[inside] += np.uint8(80)
            mask[inside] = is_disk
    return Dataset("disks", images[:320], masks[:320], images[320:], masks[320:])


recipe = Recipe(
    network,
    drawn,
    (SIZE, SIZE, 1),
    loss="binary_cross_entropy_of_logits",
    learning_rate=0.01,
    schedule=Cosine(),
    batch_size=8,
    epochs=6,
)
