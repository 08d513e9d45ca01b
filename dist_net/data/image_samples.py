"""Images as the inputs of a dataset: rows of a mapped file, or decoded when they are read."""

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
    """How the file of an image becomes an input: uint8 of ``shape``, as by ``fit_image``."""

    shape: tuple[int, ...]
    fitting: str
    max_pixels: int = MAX_PIXELS

    def input_of(self, path: Path) -> NDArray[np.uint8]:
        """The image, decoded and fitted; raises ImageError."""
        return fit_image(path, self.shape, self.fitting, self.max_pixels)


class MappedRows:
    """Some rows of an array, such as prepared images or their features; it is borrowed."""

    def __init__(self, array: NDArray[Any], rows: SampleIndices) -> None:
        self._array = np.asarray(array)
        self._rows = rows
        self.shape = array.shape[1:]
        self.dtype: np.dtype[Any] = array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fills ``out`` with the rows at ``indices``."""
        # The rows are in range, and need not the check that clipping spares.
        self._array.take(self._rows[indices], 0, out, "clip")


class DecodedImages:
    """Images that are decoded when they are read, or in the background if that is known before.

    They are known to be readable; DatasetError is raised for one that is not any more. The thread
    in the background ends by ``close``, or with the last reference.
    """

    def __init__(self, root: Path, paths: Sequence[str], preprocessing: ImagePreprocessing) -> None:
        self._root = root
        self._paths = paths
        self._preprocessing = preprocessing
        self.shape = preprocessing.shape
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        # One thread: what computes needs the cores, and Pillow's decoders let it run.
        self._background = ThreadPoolExecutor(1, "decoder")
        self._expected: dict[int, Future[NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        """Ends what goes on in the background."""
        self._background.shutdown(cancel_futures=True)

    def prefetch(self, indices: SampleIndices) -> None:
        """Begins to decode the images that are read next, in place of those expected before."""
        before, self._expected = self._expected, {}
        for index in indices.tolist():
            known = before.pop(index, None)
            self._expected[index] = known or self._background.submit(self._decoded, index)
        for future in before.values():
            future.cancel()

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fills ``out`` with the images at ``indices``, those first that nobody began to decode.

        Raises DatasetError.
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
    """Images of which training sees another variant in each epoch: ``AugmentedSamples``."""

    def __init__(self, images: Samples, augmentation: Augmentation) -> None:
        self._images = images
        self._augmentation = augmentation
        self.shape = images.shape
        self.dtype = images.dtype
        self.read = images.read

    def __len__(self) -> int:
        return len(self._images)

    def prefetch(self, indices: SampleIndices) -> None:
        """Begins to decode the images that are read next, where they are not mapped."""
        if isinstance(self._images, PrefetchedSamples):
            self._images.prefetch(indices)

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[Any], seed: int, epoch: int
    ) -> None:
        """Fills ``out`` with the variants that the images have in this epoch."""
        self.read(indices, out)
        with_channels = out.reshape(*out.shape[:3], -1, copy=False)
        self._augmentation.apply(with_channels, seed, epoch, indices.tolist())
