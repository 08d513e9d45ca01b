"""The inputs or the targets of a dataset, read by index from memory, files or decoders."""

import math
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError

SampleIndices = NDArray[np.int64]


@runtime_checkable
class Samples(Protocol):
    """Inputs or targets that need not be in memory, such as images that are decoded when read.

    ``shape`` and ``dtype`` describe one sample, in the machine's byte order; ``len`` is the number
    of samples. The content never changes. One process reads, one call at a time.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fill ``out`` with the samples at ``indices``, each from 0 to ``len`` - 1.

        ``out`` is borrowed, C-contiguous, ``(len(indices), *shape)`` of ``dtype``.
        """


@runtime_checkable
class AugmentedSamples(Samples, Protocol):
    """Inputs with another random variant in each epoch, of which ``read`` returns the originals."""

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[Any], seed: int, epoch: int
    ) -> None:
        """Fill ``out`` as ``read`` does, with each sample's variant of this epoch.

        It depends on ``seed``, ``epoch`` and the index alone: not on worker and minibatch.
        """


class ArraySamples:
    """The ``rows`` of an array, or a memory map, as ``Samples``; None: all. Borrowed."""

    def __init__(self, array: NDArray[Any], rows: SampleIndices | None = None) -> None:
        self._array = np.asarray(array)
        self._rows = rows
        self.shape = array.shape[1:]
        self.dtype = array.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return len(self._array if self._rows is None else self._rows)

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        indices = indices if self._rows is None else self._rows[indices]
        if self._array.dtype == self.dtype:
            # The indices are in range; "clip" skips NumPy's check of that.
            self._array.take(indices, 0, out, "clip")
        else:
            np.copyto(out, self._array[indices])


def records(**fields: NDArray[Any]) -> NDArray[Any]:
    """Return arrays (N, ...), such as several inputs, as the fields of a structured array (N,)."""
    dtype = np.dtype([(name, each.dtype, each.shape[1:]) for name, each in fields.items()])
    lengths = {len(each) for each in fields.values()}
    if len(lengths) != 1:
        raise DatasetError(f"records: fields of lengths {lengths}; expected the same length")
    together = np.empty(lengths.pop(), dtype)
    for name, each in fields.items():
        together[name] = each
    return together


def fields_of(samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the fields of structured samples by name; other samples as the only field, ``""``."""
    return {name: samples[name] for name in samples.dtype.names or ()} or {"": samples}


Values: TypeAlias = NDArray[Any] | Samples
"""The parts of a dataset: arrays, memory maps, or objects that read samples."""


def samples_of(values: Values, name: str = "samples") -> Samples:
    """Return the values as ``Samples``; an array is borrowed. Raise DatasetError."""
    if isinstance(values, np.ndarray):
        return ArraySamples(values)
    if not isinstance(values, Samples):
        remedy = "its toarray()" if hasattr(values, "toarray") else "as np.asarray(...) makes"
        raise DatasetError(
            f"{name} of type {type(values).__name__}: expected an array, {remedy}, "
            f"or an object with shape, dtype, len() and read(indices, out)"
        )
    return values


CHUNK_BYTES = 1 << 20


def chunks_of(samples: Samples, max_bytes: int) -> Iterator[tuple[SampleIndices, NDArray[Any]]]:
    """Yield the samples in order, with their indices, in chunks of about a MiB.

    Reads about ``max_bytes`` at most, evenly spread. Each chunk overwrites the previous chunk.
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
