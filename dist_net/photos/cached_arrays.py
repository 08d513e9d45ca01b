"""Arrays in the user's cache, such as features: computed once, and again if a file is damaged."""

from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from dist_net.errors import FetchError
from dist_net.files import replacing


def cached_array(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[NDArray[Any]], None]
) -> NDArray[Any]:
    """Return the array in ``path``, mapped and read-only.

    If the file is missing, damaged or holds another array, ``fill`` computes it into its argument
    first. Raise FetchError if the file cannot be written.
    """
    # Unlike np.load, ``open_memmap`` reads no zip file, and maps no more than there is.
    with suppress(OSError, ValueError, OverflowError):
        kept = open_memmap(path, mode="r")
        if kept.shape == shape and kept.dtype == dtype:
            return kept
    try:
        with replacing(path) as partial:
            fill(open_memmap(partial, "w+", dtype, shape))
        return open_memmap(path, mode="r")
    except OSError as error:
        raise FetchError(
            f"{path}: {error.strerror}; expected room for "
            f"{prod(shape) * np.dtype(dtype).itemsize:,} bytes"
        ) from error
