"""The order in which an epoch visits the samples; leases are ranges of it."""

import numpy as np
from numpy.typing import NDArray


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """Return a permutation of 0 to ``samples`` - 1, ``(samples,)`` int64, fixed by the arguments.

    Equal on every host, whatever its release of NumPy: NumPy keeps the raw output of a bit
    generator for good, but not the result of ``Generator.permutation`` (NEP 19). So each sample's
    index is put under random high bits, and the sort of these distinct numbers is the order.
    """
    index_mask = np.uint64((1 << max(samples - 1, 1).bit_length()) - 1)
    keys: NDArray[np.uint64] = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(
        samples
    )
    keys &= ~index_mask
    keys |= np.arange(samples, dtype=np.uint64)
    keys.sort()
    keys &= index_mask
    return keys.view(np.int64)
