"""Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28x28, in ten classes.

Source: Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747), MIT licence. The hashes are of the
decompressed files, because every publisher compresses them differently.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dist_net.data.dataset import Dataset
from dist_net.data.debian import copy_from_archive, copy_from_directory
from dist_net.data.download import download
from dist_net.data.idx import read_idx
from dist_net.data.published_files import Progress, PublishedFile, Source, fetch

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

# Train images and labels, then test images and labels.
FILES = (
    PublishedFile(
        "train-images-idx3-ubyte",
        (47040016,),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    PublishedFile(
        "train-labels-idx1-ubyte",
        (60008,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    PublishedFile(
        "t10k-images-idx3-ubyte",
        (7840016,),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    PublishedFile(
        "t10k-labels-idx1-ubyte",
        (10008,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)

BASE_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
"""The authors' repository; mirrors hold files of the same names."""

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")

ADVICE = "or train on the dataset `digits`, which is part of the package"


def sources(mirrors: Sequence[str] = ()) -> dict[str, Source]:
    """Return the sources in the order of trying; ``mirrors`` come before the authors' address."""
    return {
        f"installed Debian package {DEBIAN_PACKAGE}": partial(
            copy_from_directory, DEBIAN_DIRECTORY
        ),
        **{f"download from {url}": partial(download, url, ".gz") for url in (*mirrors, BASE_URL)},
        f"apt-get download {DEBIAN_PACKAGE}": partial(
            copy_from_archive, DEBIAN_PACKAGE, DEBIAN_DIRECTORY
        ),
    }


def load(cache_dir: Path, progress: Progress, mirrors: Sequence[str] = ()) -> Dataset:
    """Return the dataset, fetched into ``cache_dir/fashion-mnist`` if it is missing.

    Images are ``(60000, 28, 28)`` and ``(10000, 28, 28)`` uint8, read-only views of the mapped
    files. Raise FetchError.
    """
    directory = cache_dir / NAME
    fetch(NAME, FILES, directory, sources(mirrors), progress, ADVICE)
    train_images, train_labels, test_images, test_labels = (
        read_idx(directory / file.name) for file in FILES
    )
    return Dataset(NAME, train_images, train_labels, test_images, test_labels, CLASS_NAMES)
