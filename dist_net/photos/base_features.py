"""Compute the features of images with a base, and keep them in a file, by the images' pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from dist_net.data.prepared_images import ImageCache
from dist_net.data.samples import Samples
from dist_net.errors import FetchError
from dist_net.files import replacing
from dist_net.images.augmentation import Augmentation
from dist_net.nn.inference import Inference, prepare
from dist_net.nn.prepared import key_of_vector
from dist_net.photos.bases import FoundBase

BATCH_SIZE = 8

Show = Callable[[int, int], None]
"""Called with the number of computed features and their total."""


@dataclass(frozen=True)
class Views:
    """The variants of each image to compute features of; the first is the unchanged image."""

    count: int = 1
    seed: int = 0
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - immutable


class FeatureExtractor:
    """Compute a base's features of images, with ``threads`` threads of this process.

    A file in the cache keeps the features of a folder's images by the SHA-256 of their pixels: if
    files are moved, renamed or added, only new images are computed.
    """

    def __init__(self, found: FoundBase, views: Views, threads: int, cache: ImageCache) -> None:
        model, layout = found.base.features, found.base.model.layout
        assert found.weights is not None
        by_name = layout.views(found.weights)
        self._weights = np.concatenate([by_name[name].ravel() for name, _ in model.layout.shapes])
        self._model = model
        self._views = views
        self._threads = threads
        drawn = views if views.count > 1 else Views()
        self._path = cache.features(key_of_vector(model, self._weights), drawn)
        self._row = np.dtype(
            [("digest", "V32"), ("features", np.float32, (views.count, model.classes))]
        )

    def compute(
        self, samples: Samples, digests: Sequence[bytes], show: Show
    ) -> NDArray[np.float32]:
        """Return the features, (N, views, F), of images with these SHA-256 digests of pixels.

        Compute the features that the file lacks, and write them to it. Raise FetchError if it
        cannot be written.
        """
        kept = self._kept()
        row_of = {digest: row for row, digest in enumerate(kept["digest"].tolist())}
        is_new = np.array([digest not in row_of for digest in digests])
        table = np.empty(len(digests), self._row)
        table["digest"] = digests
        table["features"][~is_new] = kept["features"][
            [row_of[digest] for digest in digests if digest in row_of]
        ]
        if is_new.any():
            self._fill(samples, np.flatnonzero(is_new), table, show)
            try:
                with replacing(self._path) as partial:
                    open_memmap(partial, "w+", self._row, table.shape)[...] = table
            except OSError as error:
                raise FetchError(
                    f"{self._path}: {error.strerror}; expected room for {table.nbytes:,} bytes"
                ) from error
        return table["features"]

    def _kept(self) -> NDArray[np.void]:
        """Return the file's rows; none if it is missing, damaged or holds other rows."""
        # Unlike np.load, ``open_memmap`` reads no zip file, and maps no more than there is.
        with suppress(OSError, ValueError, OverflowError):
            kept = open_memmap(self._path, mode="r")
            if kept.dtype == self._row and kept.ndim == 1:
                return kept
        return np.empty(0, self._row)

    def _fill(
        self, samples: Samples, new: NDArray[np.int64], table: NDArray[np.void], show: Show
    ) -> None:
        batch = np.empty((BATCH_SIZE, *samples.shape), np.uint8)
        prepared = prepare(self._model, self._weights)
        with closing(Inference(self._model, prepared, self._threads, BATCH_SIZE)) as inference:
            for start in range(0, len(new), BATCH_SIZE):
                rows = new[start : start + BATCH_SIZE]
                images = batch[: len(rows)]
                samples.read(rows, images)
                # A variant depends on the pixels, so that it can be found again as well.
                seeds = [int.from_bytes(each[:8]) for each in table["digest"][rows].tolist()]
                for view in range(self._views.count):
                    variants = images.copy()
                    if view:
                        with_channels = variants.reshape(*images.shape[:3], -1, copy=False)
                        self._views.augmentation.apply(with_channels, self._views.seed, view, seeds)
                    table["features"][rows, view] = inference(variants)
                show(start + len(rows), len(new))
