"""The task that every peer is measured on, and how each one reports.

Images as Fashion-MNIST has them (60,000 of 28 by 28 bytes, 10 classes) but random, so that nothing
is downloaded; a 784-128-10 network with ReLU, cross-entropy, and plain SGD. Each peer is a process
of its own, which measures a batch size when it is told to.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.orders import obey, version_of

SAMPLES = 60_000
PIXELS = 784
HIDDEN = 128
CLASSES = 10
LEARNING_RATE = 0.05

Case = dict[str, float]


def synthetic_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (60000, 784) uint8 and labels (60000,) uint8, the same at each call."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (SAMPLES, PIXELS), dtype=np.uint8)
    return images, generator.integers(0, CLASSES, SAMPLES, dtype=np.uint8)


def report(distribution: str, measure: Callable[[int], Case]) -> None:
    """Measures the batch sizes that it is told to, until there are no more orders."""
    obey({"version": lambda: version_of(distribution), "measure": lambda size: measure(size)})
