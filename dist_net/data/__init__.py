"""Datasets: fetched, verified, mapped; and the order in which an epoch visits them."""

from collections.abc import Sequence
from pathlib import Path

import platformdirs

from dist_net.data import digits, fashion_mnist
from dist_net.data.dataset import Dataset, epoch_order
from dist_net.data.fetch import FetchEvent, Progress
from dist_net.data.samples import AugmentedSamples, Samples
from dist_net.errors import UnknownDatasetError

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
    fashion_mnist.NAME: fashion_mnist.CLASS_NAMES,
    digits.NAME: digits.CLASS_NAMES,
}
"""What the classes of each dataset are called; nothing is fetched to know it."""

DATASETS = tuple(CLASS_NAMES)
"""The name of every dataset."""


def default_cache_dir() -> Path:
    """Return this user's directory for files that can be fetched again."""
    return platformdirs.user_cache_path("dist-net", appauthor=False)


def dataset_named(
    name: str,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    mirrors: Sequence[str] = (),
) -> Dataset:
    """Return the dataset ``name``, fetched into ``cache_dir`` if need be.

    ``cache_dir`` None stands for ``default_cache_dir()``. ``progress`` is called with each event
    of the fetching; ``mirrors`` are base addresses to download from before the published ones.
    Raises ``UnknownDatasetError``, ``NotFetchedError`` when no source can deliver it, and
    ``CacheError`` when ``cache_dir`` cannot be used.
    """
    if name == digits.NAME:
        return digits.load()
    if name == fashion_mnist.NAME:
        return fashion_mnist.load(
            cache_dir or default_cache_dir(), progress or _ignore, mirrors=mirrors
        )
    raise UnknownDatasetError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")


def _ignore(event: FetchEvent) -> None:
    """Show nobody."""
