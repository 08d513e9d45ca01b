"""Compute the features of a folder's images with a base, and cache them beside the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.data.image_samples import AugmentedImages
from dist_net.data.prepared_images import ImageCache, PreparedImages
from dist_net.images.augmentation import Augmentation
from dist_net.nn.inference import Inference, prepare
from dist_net.nn.prepared import key_of_vector
from dist_net.photos.bases import FoundBase
from dist_net.photos.cached_arrays import cached_array

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
    """Compute a base's features of images, with ``threads`` threads of this process."""

    def __init__(self, found: FoundBase, threads: int) -> None:
        self._base = found.base
        model, layout = found.base.features, found.base.model.layout
        assert found.weights is not None
        by_name = layout.views(found.weights)
        self.weights = np.concatenate([by_name[name].ravel() for name, _ in model.layout.shapes])
        self.key = key_of_vector(model, self.weights)
        self._model = model
        self._threads = threads

    def file(self, cache: ImageCache, views: Views) -> Path:
        """Return the cache file of the features of these images."""
        of = asdict(views) if views.count > 1 else {}
        key = hashlib.sha256(f"{self.key} {json.dumps(of)}".encode()).hexdigest()
        return cache.beside(f"{key[:32]}.features")

    def compute(
        self, images: PreparedImages, views: Views, path: Path, show: Show
    ) -> NDArray[np.float32]:
        """Return the features, (views, N, F) float32, mapped from ``path``.

        Compute them first unless ``path`` has them. N counts every image of the folder's list,
        usable or not. Raise FetchError if the file cannot be written.
        """
        shape = (views.count, len(images.folder.images), self._model.classes)
        return cached_array(
            path, shape, np.float32, lambda out: self._fill(images, views, out, show)
        )

    def _fill(
        self, images: PreparedImages, views: Views, out: NDArray[np.float32], show: Show
    ) -> None:
        samples, places = images.usable_samples(), images.usable_rows()
        augmented = AugmentedImages(samples, views.augmentation)
        batch = np.empty((BATCH_SIZE, *samples.shape), np.uint8)
        total = views.count * len(samples)
        prepared = prepare(self._model, self.weights)
        with closing(Inference(self._model, prepared, self._threads, BATCH_SIZE)) as inference:
            for view, rows in enumerate(out):
                for start in range(0, len(samples), BATCH_SIZE):
                    indices = np.arange(start, min(start + BATCH_SIZE, len(samples)))
                    inputs = batch[: len(indices)]
                    if view:
                        augmented.read_augmented(indices, inputs, views.seed, view)
                    else:
                        samples.read(indices, inputs)
                    rows[places[indices]] = inference(inputs)
                    show(view * len(samples) + int(indices[-1]) + 1, total)
