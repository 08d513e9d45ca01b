"""A dataset of labelled images, and the order in which an epoch visits them."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError

DIGESTED_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split into a part to train on and a part to test on.

    Images are ``(N, H, W)`` or ``(N, H, W, C)`` uint8, 0 to 255, labels ``(N,)`` uint8 that index
    ``class_names``. The arrays are borrowed, never written, and may be read-only views of mapped
    files. Raises ``DatasetError`` when they do not fit together.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        self._check_part("train", self.train_images, self.train_labels)
        self._check_part("test", self.test_images, self.test_labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            self._refuse(
                f"train images of shape {self.train_images.shape[1:]} and test images of shape "
                f"{self.test_images.shape[1:]}",
                "the same",
            )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: ``(H, W)`` or ``(H, W, C)``."""
        return self.train_images.shape[1:]

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the training part: shape, labels and images, in their order.

        Of more than 64 MiB of images only some are taken, evenly spread.
        """
        digest = hashlib.sha256(repr((self.train_images.shape, self.class_names)).encode())
        every = self.train_images.nbytes // DIGESTED_BYTES + 1
        for array in (self.train_labels, self.train_images[::every]):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _check_part(self, part: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
        for kind, array in (("images", images), ("labels", labels)):
            if array.dtype != np.uint8:
                self._refuse(f"{part} {kind} of dtype {array.dtype}", "uint8")
        if images.ndim not in (3, 4):
            self._refuse(f"{part} images of shape {images.shape}", "(N, H, W) or (N, H, W, C)")
        if labels.shape != images.shape[:1]:
            self._refuse(
                f"{part} labels of shape {labels.shape} for {len(images)} images",
                "one label for each image",
            )
        if len(labels) == 0:
            self._refuse(f"no {part} images", "at least one")
        if labels.max() >= len(self.class_names):
            self._refuse(
                f"{part} label {labels.max()} at index {labels.argmax()}",
                f"less than the number of classes, {len(self.class_names)}",
            )

    def _refuse(self, found: str, expected: str) -> None:
        raise DatasetError(f"dataset {self.name}: {found}: expected {expected}")


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the samples, ``(samples,)`` int64.

    Leases are ranges of it. It is the same on every host, whatever its release of NumPy: that keeps
    the raw output of a bit generator for good, but not the result of ``Generator.permutation`` (NEP
    19). So each sample's index is put under random high bits, and these numbers are sorted.
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
