"""Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28x28, in ten classes.

Source: Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747), MIT licence. The files are known by their
decompressed content, because each publisher compressed them anew.
"""

from collections.abc import Sequence
from pathlib import Path

from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.dataset import Dataset
from dist_net.data.debian import ArchivedPackage, InstalledPackage
from dist_net.data.download import Download
from dist_net.data.fetch import Progress, Source, fetch
from dist_net.data.idx import read_idx

NAME = "fashion-mnist"

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

TRAIN_IMAGES = PublishedFile(
    "train-images-idx3-ubyte",
    47040016,
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
)
TRAIN_LABELS = PublishedFile(
    "train-labels-idx1-ubyte",
    60008,
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
)
TEST_IMAGES = PublishedFile(
    "t10k-images-idx3-ubyte",
    7840016,
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
)
TEST_LABELS = PublishedFile(
    "t10k-labels-idx1-ubyte",
    10008,
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

BASE_URLS = ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",)
"""The authors' repository; other addresses that hold the four files may be given as mirrors."""

DEBIAN_PACKAGE = "dataset-fashion-mnist"

OTHERWISE = "or train on the dataset `digits`, which is part of the package and needs nothing"


def sources(mirrors: Sequence[str] = ()) -> tuple[Source, ...]:
    """Return the sources in the order of trying; ``mirrors`` come before the authors' address."""
    return (
        InstalledPackage(DEBIAN_PACKAGE),
        *(Download(base_url) for base_url in (*mirrors, *BASE_URLS)),
        ArchivedPackage(DEBIAN_PACKAGE),
    )


def load(cache_dir: Path, progress: Progress, mirrors: Sequence[str] = ()) -> Dataset:
    """Return the dataset, fetched into ``cache_dir``/fashion-mnist unless it is there already.

    Images ``(60000, 28, 28)`` and ``(10000, 28, 28)`` uint8: read-only views of the mapped files.
    Raises ``NotFetchedError`` and ``CacheError`` as ``fetch`` does.
    """
    cache = Cache(cache_dir / NAME)
    fetch(NAME, FILES, sources(mirrors), cache, progress, OTHERWISE)
    return Dataset(
        name=NAME,
        train_inputs=read_idx(cache.path(TRAIN_IMAGES)),
        train_targets=read_idx(cache.path(TRAIN_LABELS)),
        test_inputs=read_idx(cache.path(TEST_IMAGES)),
        test_targets=read_idx(cache.path(TEST_LABELS)),
        class_names=CLASS_NAMES,
    )
