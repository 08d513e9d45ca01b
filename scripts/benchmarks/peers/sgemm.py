"""NumPy's own matrix product: how fast multiplying can be on this machine, at this moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from benchmarks.peers.orders import Peer

Array = NDArray[np.float32]

SIZE = 2048
"""Large enough that a larger one is no faster, and small enough for 0.1 s."""

FLOPS = 2 * SIZE**3


def load(_directory: Path, _batch: int, threads: int) -> Callable[[], Array]:
    """A function that multiplies two square float32 matrices."""
    left, right = np.random.default_rng(0).random((2, SIZE, SIZE), np.float32)
    product: Array = np.empty_like(left)
    controller = ThreadpoolController()

    def run() -> Array:
        with controller.limit(limits=threads):
            np.matmul(left, right, out=product)
        return product

    return run


if __name__ == "__main__":
    Peer("numpy", load).obey()
