"""The type of the flat vectors: a run's weights, its gradients, and views of them."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Vectors = tuple[Vector, ...]
