"""Images as the inputs of a dataset: rows of a mapped file, or files decoded on reading."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.data.samples import PrefetchedSamples, SampleIndices, Samples
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


class MappedRows:
    """Selected rows of a borrowed array, such as prepared images or their features."""

    def __init__(self, array: NDArray[Any], rows: SampleIndices) -> None:
        self._array = np.asarray(array)
        self._rows = rows
        self.shape = array.shape[1:]
        self.dtype: np.dtype[Any] = array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fill ``out`` with the rows at ``indices``."""
        # The rows are in range; "clip" skips NumPy's check of that.
        self._array.take(self._rows[indices], 0, out, "clip")


class DecodedImages:
    """Images that are decoded when they are read, or in the background after ``prefetch``.

    All files were readable when they were prepared. ``close``, or dropping the last reference,
    ends the background thread.
    """

    def __init__(self, root: Path, paths: Sequence[str], preprocessing: ImagePreprocessing) -> None:
        self._root = root
        self._paths = paths
        self._preprocessing = preprocessing
        self.shape = preprocessing.shape
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        # One thread: training needs the cores, and runs on while Pillow's decoders release the GIL.
        self._background = ThreadPoolExecutor(1, "decoder")
        self._expected: dict[int, Future[NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        """Cancel pending decoding and end the background thread."""
        self._background.shutdown(cancel_futures=True)

    def prefetch(self, indices: SampleIndices) -> None:
        """Begin to decode the images at ``indices``; cancel the rest of an earlier call."""
        before, self._expected = self._expected, {}
        for index in indices.tolist():
            known = before.pop(index, None)
            self._expected[index] = known or self._background.submit(self._decoded, index)
        for future in before.values():
            future.cancel()

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fill ``out`` with the images at ``indices``.

        Decodes in this thread every image that the background thread has not begun. Raises
        ``DatasetError`` for an image that has become unreadable.
        """
        for place, index in enumerate(indices.tolist()):
            future = self._expected.pop(index, None)
            is_begun = future is not None and not future.cancel()
            out[place] = future.result() if future and is_begun else self._decoded(index)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        try:
            return self._preprocessing.input_of(self._root / self._paths[index])
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

    def prefetch(self, indices: SampleIndices) -> None:
        """Begin to decode the images at ``indices``; do nothing if the images are mapped."""
        if isinstance(self._images, PrefetchedSamples):
            self._images.prefetch(indices)

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[Any], seed: int, epoch: int
    ) -> None:
        """Fill ``out`` with each image's variant of this epoch."""
        self.read(indices, out)
        with_channels = out.reshape(*out.shape[:3], -1, copy=False)
        self._augmentation.apply(with_channels, seed, epoch, indices.tolist())
