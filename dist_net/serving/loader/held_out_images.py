"""Sample images that a run held out, as files. Without the I/O of the model loader, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data import Dataset
from dist_net.data.samples import samples_of
from dist_net.images.fitting import unfitted

MOST = 12
MAX_BYTES = 8 << 20  # of their pixels


def sample_images(
    held_out: Dataset, labels: Sequence[str], fitting: str
) -> list[tuple[str, bytes]]:
    """Return the label and the PNG file of some uint8 images, from as many classes as possible.

    ``fitting`` converts each file to the image that was held out, bit for bit.
    """
    images = samples_of(held_out.test_inputs)
    targets = np.empty(len(images), np.int64)
    samples_of(held_out.test_targets).read(np.arange(len(targets)), targets)
    most = min(MOST, MAX_BYTES // int(np.prod(images.shape)))
    indices = first_of_each_class(targets)[:most]
    chosen = np.empty((len(indices), *images.shape), np.uint8)
    images.read(indices, chosen)
    return [
        (labels[target], _png(unfitted(each, fitting)))
        for target, each in zip(targets[indices], chosen, strict=True)
    ]


def first_of_each_class(targets: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return all indices: the first of each class, then the second of each, and so on."""
    by_class = np.argsort(targets, kind="stable")
    counts = np.unique(targets, return_counts=True)[1]
    place_in_class = np.concatenate([np.arange(count) for count in counts])
    return by_class[np.argsort(place_in_class, kind="stable")]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
    return file.getvalue()
