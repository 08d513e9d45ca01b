"""Datasets, fetched, verified and memory-mapped, and the order in which an epoch visits them."""

from collections.abc import Sequence
from pathlib import Path

import platformdirs

from dist_net.data import digits_dataset, fashion_mnist_dataset
from dist_net.data.dataset import Dataset, epoch_order
from dist_net.data.published_files import FetchEvent, Progress
from dist_net.data.samples import AugmentedSamples, Samples
from dist_net.errors import DatasetError

__all__ = [
    "CLASS_NAMES",
    "DATASETS",
    "AugmentedSamples",
    "Dataset",
    "FetchEvent",
    "Progress",
    "Samples",
    "dataset_named",
    "default_cache_dir",
    "epoch_order",
]

CLASS_NAMES = {
    fashion_mnist_dataset.NAME: fashion_mnist_dataset.CLASS_NAMES,
    digits_dataset.NAME: digits_dataset.CLASS_NAMES,
}
"""The class names of each dataset, available without fetching it."""

DATASETS = tuple(CLASS_NAMES)
"""The name of every dataset."""


def default_cache_dir() -> Path:
    """Return the user's cache directory."""
    return platformdirs.user_cache_path("dist-net", appauthor=False)


def dataset_named(
    name: str,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    mirrors: Sequence[str] = (),
) -> Dataset:
    """Return the dataset ``name``, fetched into ``cache_dir`` if it is missing.

    ``cache_dir`` defaults to ``default_cache_dir()``. ``progress`` receives each ``FetchEvent``.
    ``mirrors`` are base addresses that are tried before the published address. Raises
    ``DatasetError``, and ``FetchError`` if no source delivers the dataset or ``cache_dir`` is not
    usable.
    """
    if name == digits_dataset.NAME:
        return digits_dataset.load()
    if name == fashion_mnist_dataset.NAME:
        return fashion_mnist_dataset.load(
            cache_dir or default_cache_dir(), progress or _ignore, mirrors
        )
    raise DatasetError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")


def _ignore(_: FetchEvent) -> None:
    """Show no progress."""
