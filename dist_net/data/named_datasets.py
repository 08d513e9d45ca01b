"""The datasets that are loaded by name: Fashion-MNIST, which is fetched, and digits.

Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28x28, in ten classes (Xiao, Rasul &
Vollgraf 2017, arXiv 1708.07747), MIT licence. The hashes are of the decompressed files, because
every publisher compresses them differently. The images are read-only views of mapped files.

digits: the 8x8 handwritten digits of UCI, 1,437 to train on and 360 to test on, each class split in
proportion. ``digits.npz`` is part of the package; ``digits.licence.txt`` states how it was made.
"""

import struct
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from dist_net.data import published_files as published
from dist_net.data.published_files import Progress, PublishedFile, Source, download, fetch
from dist_net.data.samples import ArrayDataset
from dist_net.errors import DatasetError

FASHION_MNIST, DIGITS = "fashion-mnist", "digits"
CLASS_NAMES = {
    FASHION_MNIST: (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    DIGITS: tuple("0123456789"),
}
"""The class names of each dataset, available without fetching it."""

DATASETS = tuple(CLASS_NAMES)
"""The name of every dataset."""

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


def default_cache_dir() -> Path:
    return platformdirs.user_cache_path("dist-net", appauthor=False)


def dataset_named(
    name: str,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    mirrors: Sequence[str] = (),
) -> ArrayDataset:
    """Return the dataset ``name``, fetched into ``cache_dir`` if it is missing.

    ``cache_dir`` defaults to ``default_cache_dir()``. ``progress`` receives each ``FetchEvent``.
    ``mirrors`` are base addresses that are tried before the published address. Raises
    ``DatasetError``, and ``FetchError`` if no source delivers it or ``cache_dir`` is not usable.
    """
    if name not in DATASETS:
        raise DatasetError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")
    if name == DIGITS:
        packaged = resources.files("dist_net.data").joinpath("digits.npz")
        with packaged.open("rb") as file, np.load(file) as arrays:
            return ArrayDataset(name, **arrays, class_names=CLASS_NAMES[name])
    directory = (cache_dir or default_cache_dir()) / name
    fetch(name, FILES, directory, sources(mirrors), progress or (lambda _: None), ADVICE)
    inputs, targets, test_inputs, test_targets = (read_idx(directory / each.name) for each in FILES)
    return ArrayDataset(name, inputs, targets, test_inputs, test_targets, CLASS_NAMES[name])


def sources(mirrors: Sequence[str]) -> dict[str, Source]:
    """Return the sources in the order of trying; ``mirrors`` come before the authors' address."""
    installed = partial(published.copy_from_directory, DEBIAN_DIRECTORY)
    archive = partial(published.copy_from_archive, DEBIAN_PACKAGE, DEBIAN_DIRECTORY)
    return {
        f"installed Debian package {DEBIAN_PACKAGE}": installed,
        **{f"download from {url}": partial(download, url, ".gz") for url in (*mirrors, BASE_URL)},
        f"apt-get download {DEBIAN_PACKAGE}": archive,
    }


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of bytes in a verified IDX file, in the file's shape and read-only.

    Source: Yann LeCun, "The MNIST database", section "The IDX file format": two zero bytes, 8 for
    bytes, the number of dimensions, each dimension as a big-endian 32-bit integer, and then the
    elements, the last dimension changing fastest.

    The file is mapped into memory, so that processes that read it share the page cache. Raise
    ``DatasetError`` if the file cannot be read or is cut short.
    """
    try:
        with path.open("rb") as file:
            rank = file.read(4)[3]
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            # A plain view: indexing np.memmap itself costs a Python call for every result.
            return np.asarray(np.memmap(file, np.uint8, "r", 4 + 4 * rank, shape))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise DatasetError(f"{path}: {error}; expected an IDX file of bytes") from error
