"""Flat vectors, such as weights, and their parts, for packages that share no other module."""

from math import prod

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

ArrayShapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every array, in the order of the flat vector."""

AVERAGE = "weight_average"
"""The name of the part of a training state that is the average of the weights."""


def views_of(vector: Vector, shapes: ArrayShapes) -> dict[str, Vector]:
    """Return each array by name, as a view of the flat ``vector`` in its own shape."""
    ends = np.cumsum([prod(shape) for _, shape in shapes])
    return {
        name: vector[end - prod(shape) : end].reshape(shape, copy=False)
        for (name, shape), end in zip(shapes, ends, strict=True)
    }
