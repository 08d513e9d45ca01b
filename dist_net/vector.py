"""The type of flat vectors (weights, gradients), for packages that share no other module."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
