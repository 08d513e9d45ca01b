"""The inputs or the targets of a dataset, read by their indices, wherever they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError

SampleIndices = NDArray[np.int64]


@runtime_checkable
class Samples(Protocol):
    """Inputs or targets that need not lie in memory, such as images that are decoded when read.

    ``shape`` and ``dtype`` are those of one sample, in the machine's byte order; ``len`` is how
    many there are. The content never changes. One process reads, one call at a time.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fills ``out`` with the samples at ``indices``, which are from 0 to ``len`` - 1.

        ``out`` is borrowed, C-contiguous, ``(len(indices), *shape)`` of ``dtype``.
        """


@runtime_checkable
class AugmentedSamples(Samples, Protocol):
    """Inputs of which training sees another variant in each epoch.

    ``read`` gives them as they are, for evaluation and for the dataset's digest.
    """

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[Any], seed: int, epoch: int
    ) -> None:
        """Fills ``out`` as ``read`` does, with each sample's variant of this epoch.

        The variant follows from (``seed``, ``epoch``, the sample's index) alone, so that it is the
        same whoever computes a minibatch, and whatever else is in that.
        """


@runtime_checkable
class PrefetchedSamples(Samples, Protocol):
    """Samples that take a while to read, and may be told before which are next."""

    def prefetch(self, indices: SampleIndices) -> None:
        """Begins to read the samples at ``indices`` while the caller computes.

        They take the place of those that were expected before.
        """


class ArraySamples:
    """An array, or a memory map, as ``Samples``; borrowed."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = np.asarray(array)
        self.shape = array.shape[1:]
        self.dtype = array.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return len(self._array)

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fills ``out`` with the samples at ``indices``."""
        if self._array.dtype == self.dtype:
            # The indices are in range, and need not the check that clipping spares.
            self._array.take(indices, 0, out, "clip")
        else:
            np.copyto(out, self._array[indices])


Values: TypeAlias = NDArray[Any] | Samples
"""What a dataset is made of: arrays, memory maps, or whatever reads samples."""


def samples_of(values: Values, name: str = "samples") -> Samples:
    """Return the values as ``Samples``; an array is borrowed.

    Raises DatasetError for what is neither.
    """
    if isinstance(values, np.ndarray):
        return ArraySamples(values)
    if not isinstance(values, Samples):
        raise DatasetError(
            f"{name} of type {type(values).__name__}: expected an array, as np.array(list) makes, "
            f"or an object with shape, dtype, len() and read(indices, out)"
        )
    return values


CHUNK_BYTES = 1 << 20


def chunks_of(samples: Samples, max_bytes: int) -> Iterator[tuple[SampleIndices, NDArray[Any]]]:
    """The samples in their order, with their indices, in chunks of about a MiB.

    Of more than ``max_bytes`` only as many are read, evenly spread. A chunk is overwritten by the
    next.
    """
    sample_bytes = max(1, samples.dtype.itemsize * math.prod(samples.shape))
    indices = np.arange(0, len(samples), len(samples) * sample_bytes // max_bytes + 1)
    size = min(len(indices), max(1, CHUNK_BYTES // sample_bytes))
    buffer = np.empty((size, *samples.shape), samples.dtype)
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        chunk = buffer[: len(chosen)]
        samples.read(chosen, chunk)
        yield chosen, chunk
