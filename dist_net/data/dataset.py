"""A dataset of inputs and targets, and the order in which an epoch visits them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dist_net.data.samples import SampleIndices, Samples, Values, chunks_of, fields_of, samples_of
from dist_net.errors import DatasetError

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
