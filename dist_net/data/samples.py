"""A dataset: inputs and targets read by index from memory, files or decoders; an epoch's order."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NoReturn, Protocol, TypeAlias, runtime_checkable

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


EXAMINED_BYTES = 64 << 20
"""The bytes of samples that are checked or digested: they may be on a slow disk."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and targets, split into a part to train on and a part to test on.

    Inputs are numbers or bools of any shape; the first axis counts samples. Several inputs or
    targets per sample are the fields of a structured array: see ``records``. Targets are integers
    that index ``class_names``, of any dtype, or, without classes, floats (regression). Each of
    the four is an array, a memory map, or an object with the methods of ``Samples``; they are
    borrowed and never written. Only about 64 MiB of targets and of float inputs are checked, evenly
    spread; the loss checks every class label that it computes. Raise ``DatasetError`` if the parts
    do not fit together, or contain numbers that are not finite; labels: see ``require_labels``.
    """

    name: str
    train_inputs: Values
    train_targets: Values
    test_inputs: Values
    test_targets: Values
    class_names: tuple[str, ...] = ()
    turn: Lock = field(default_factory=Lock, init=False, repr=False)
    """Held while samples are read, one call at a time, by threads that share this object."""

    def __post_init__(self) -> None:
        inputs = [self._samples(each) for each in ("train_inputs", "test_inputs")]
        targets = [self._samples(each) for each in ("train_targets", "test_targets")]
        for kind, (train, test) in (("inputs", inputs), ("targets", targets)):
            if _described(train) != _described(test):
                found = f"train {kind} are {_described(train)} each, test {kind} {_described(test)}"
                self._refuse(found, "the same")
        for part, x, y in zip(("train", "test"), inputs, targets, strict=True):
            if len(x) != len(y):
                self._refuse(f"{len(y)} {part} targets for {len(x)} inputs", "one per input")
            if y.dtype.kind not in ("iu" if self.class_names else "fV"):
                found = f"targets of dtype {y.dtype} and {len(self.class_names)} names of classes"
                expected = "integers with the names of their classes, or floats without"
                self._refuse(f"{part} {found}", expected)
            self._require_finite(f"{part} target", y)
            self._require_finite(f"{part} input", x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return samples_of(self.train_inputs).shape

    def digest(self) -> str:
        """Return the SHA-256, hexadecimal, of about 64 MiB each of training targets and inputs."""
        digest = hashlib.sha256()
        parts = samples_of(self.train_targets), samples_of(self.train_inputs)
        digest.update(repr((len(parts[0]), *map(_described, parts), self.class_names)).encode())
        for samples in parts:
            for _, chunk in chunks_of(samples, EXAMINED_BYTES):
                digest.update(chunk.data)
        return digest.hexdigest()

    def _samples(self, field: str) -> Samples:
        what, values = field.replace("_", " "), getattr(self, field)
        samples = samples_of(values, f"dataset {self.name}: {what}")
        if isinstance(values, np.ndarray) and not values.ndim:
            self._refuse(f"{what} without an axis", "the first axis to count samples")
        kinds = {values.dtype[name].base.kind for name in values.dtype.names or ()}
        if (kinds or {values.dtype.kind}) - {*"biuf"}:
            self._refuse(f"{what} of dtype {values.dtype}", "numbers or bools")
        if len(values) == 0:
            self._refuse(f"no {what}", "at least one")
        return samples

    def require_labels(self, require: Callable[[str, NDArray[Any], SampleIndices], None]) -> None:
        """Call ``require`` with a part's name, some 64 MiB of its targets, and their indices."""
        for part, targets in (("train", self.train_targets), ("test", self.test_targets)):
            for indices, chunk in chunks_of(samples_of(targets), EXAMINED_BYTES):
                require(f"dataset {self.name}: {part} target", chunk, indices)

    def _require_finite(self, what: str, samples: Samples) -> None:
        if samples.dtype.kind in "iu":
            return
        for indices, chunk in chunks_of(samples, EXAMINED_BYTES):
            for name, each in fields_of(chunk).items():
                if not np.isfinite(each).all():
                    place = tuple(np.argwhere(~np.isfinite(each))[0])
                    found = f"{what} {name}".rstrip()
                    self._refuse(f"{found} {each[place]} at index {indices[place[0]]}", "finite")

    def _refuse(self, found: str, expected: str) -> NoReturn:
        raise DatasetError(f"dataset {self.name}: {found}: expected {expected}")


@dataclass(frozen=True, eq=False)
class ArrayDataset(Dataset):
    """A dataset of arrays, in memory or memory-mapped: they have indices and slices."""

    train_inputs: NDArray[Any]
    train_targets: NDArray[Any]
    test_inputs: NDArray[Any]
    test_targets: NDArray[Any]


def _described(samples: Samples) -> str:
    return f"{samples.dtype}{list(samples.shape)}"


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the samples, ``(samples,)`` int64.

    Leases are ranges of this order. It is the same on every host and release of NumPy: NumPy
    guarantees the raw output of a bit generator, but not the output of ``Generator.permutation``
    (NEP 19). Each index is therefore combined with random high bits, and the results are sorted.
    """
    index_mask = np.uint64((1 << max(samples - 1, 1).bit_length()) - 1)
    generator = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    keys: NDArray[np.uint64] = generator.random_raw(samples)
    keys &= ~index_mask
    keys |= np.arange(samples, dtype=np.uint64)
    keys.sort()
    keys &= index_mask
    return keys.view(np.int64)
