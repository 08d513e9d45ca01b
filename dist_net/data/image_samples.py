"""Images as the inputs of a dataset: rows of a mapped file, or files decoded on reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import DatasetError, ImageError
from dist_net.images.augmentation import Augmentation
from dist_net.images.decoding import MAX_PIXELS
from dist_net.images.fitting import fit_image


@dataclass(frozen=True)
class ImagePreprocessing:
    """The arguments with which ``fit_image`` turns a file into an input, ``shape`` uint8."""

    shape: tuple[int, ...]
    fitting: str
    max_pixels: int = MAX_PIXELS

    def input_of(self, path: Path) -> NDArray[np.uint8]:
        """Return the image, decoded and fitted, ``shape`` uint8; raise ``ImageError``."""
        return fit_image(path, self.shape, self.fitting, self.max_pixels)


class DecodedImages:
    """Images that are decoded when they are read; all were readable when they were prepared."""

    def __init__(self, root: Path, paths: Sequence[str], preprocessing: ImagePreprocessing) -> None:
        self._root = root
        self._paths = paths
        self._preprocessing = preprocessing
        self.shape = preprocessing.shape
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fill ``out`` with the images at ``indices``.

        Raise ``DatasetError`` for an image that has become unreadable.
        """
        for place, index in enumerate(indices.tolist()):
            try:
                out[place] = self._preprocessing.input_of(self._root / self._paths[index])
            except ImageError as error:
                raise DatasetError(
                    f"{error}; it could be read when the images were prepared; prepare them again"
                ) from error


class AugmentedImages:
    """Images with another random variant for training in each epoch, as ``AugmentedSamples``."""

    def __init__(self, images: Samples, augmentation: Augmentation) -> None:
        self._images = images
        self._augmentation = augmentation
        self.shape = images.shape
        self.dtype = images.dtype
        self.read = images.read

    def __len__(self) -> int:
        return len(self._images)

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[Any], seed: int, epoch: int
    ) -> None:
        """Fill ``out`` with each image's variant of this epoch."""
        self.read(indices, out)
        with_channels = out.reshape(*out.shape[:3], -1, copy=False)
        self._augmentation.apply(with_channels, seed, epoch, indices.tolist())
