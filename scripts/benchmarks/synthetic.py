"""The recipe that the project itself is measured with: the peers' task, in this project's words."""

import numpy as np

from benchmarks.peers import task
from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
from dist_net.optim import SGD


def dataset() -> Dataset:
    """The peers' random images; a test part of a single one, as nothing is tested here."""
    images, labels = task.synthetic_images()
    shaped = images.reshape(-1, 28, 28, copy=False)
    names = tuple(str(label) for label in np.arange(task.CLASSES))
    return Dataset("synthetic", shaped, labels, shaped[:1], labels[:1], names)


recipe = Recipe(
    network=Sequential(Rescale(), Flatten(), Dense(task.HIDDEN, relu), Dense(task.CLASSES)),
    dataset=dataset,
    input_shape=(28, 28),
    optimizer=SGD(),
    learning_rate=task.LEARNING_RATE,
)
