"""Flat vectors, such as weights, and their parts, for packages that share no other module."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

ArrayShapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every array, in the order of the flat vector."""

AVERAGE = "weight_average"
"""The name of the part of a training state that is the average of the weights."""
