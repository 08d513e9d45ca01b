"""The datasets that are loaded by name: Fashion-MNIST, which is fetched, and digits.

Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28x28, in ten classes (Xiao, Rasul &
Vollgraf 2017, arXiv 1708.07747), MIT licence. The hashes are of the decompressed files, because
every publisher compresses them differently.

digits: the 8x8 handwritten digits of UCI. ``digits.npz`` is part of the package. It was made from
scikit-learn's copy (its licence is in ``digits.licence.txt``) by::

    digits = sklearn.datasets.load_digits()
    images = (digits.images.astype(np.uint16) * 255 // 16).astype(np.uint8)
    split = sklearn.model_selection.train_test_split(
        images, digits.target.astype(np.uint8), test_size=360, stratify=digits.target,
        random_state=0)
    names = ("train_inputs", "test_inputs", "train_targets", "test_targets")
    np.savez_compressed("digits.npz", **dict(zip(names, split)))
"""

import math
import struct
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from dist_net.data.dataset import Dataset
from dist_net.data.published_files import (
    Progress,
    PublishedFile,
    Source,
    copy_from_archive,
    copy_from_directory,
    download,
    fetch,
)
from dist_net.errors import DatasetError

FASHION_MNIST, DIGITS = "fashion-mnist", "digits"
CLASS_NAMES = {
    FASHION_MNIST: (
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


MAX_IDX_DIMENSIONS = 64
"""NumPy's limit."""

IDX_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


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
    if name == DIGITS:
        return _load_digits()
    if name == FASHION_MNIST:
        return _load_fashion_mnist(
            cache_dir or default_cache_dir(), progress or (lambda _: None), mirrors
        )
    raise DatasetError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")


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


def _load_fashion_mnist(cache_dir: Path, progress: Progress, mirrors: Sequence[str]) -> Dataset:
    """Return Fashion-MNIST, fetched into ``cache_dir/fashion-mnist`` if it is missing.

    Images are ``(60000, 28, 28)`` and ``(10000, 28, 28)`` uint8, read-only views of the mapped
    files. Raise FetchError.
    """
    directory = cache_dir / FASHION_MNIST
    fetch(FASHION_MNIST, FILES, directory, sources(mirrors), progress, ADVICE)
    train_images, train_labels, test_images, test_labels = (
        read_idx(directory / file.name) for file in FILES
    )
    return Dataset(
        FASHION_MNIST,
        train_images,
        train_labels,
        test_images,
        test_labels,
        class_names=CLASS_NAMES[FASHION_MNIST],
    )


def _load_digits() -> Dataset:
    """Return 1,437 digits to train on and 360 to test on, each class split in proportion.

    Images are ``(N, 8, 8)`` uint8; the original's 0 to 16 is scaled to 0 to 255.
    """
    packaged = resources.files("dist_net.data").joinpath("digits.npz")
    with packaged.open("rb") as file, np.load(file) as arrays:
        return Dataset(name=DIGITS, **arrays, class_names=CLASS_NAMES[DIGITS])


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array in the IDX file ``path``, in the file's shape and read-only.

    Source: Yann LeCun, "The MNIST database", section "The IDX file format": two zero bytes, a code
    for the element type, the number of dimensions, each dimension as a big-endian 32-bit integer,
    and then the elements, big-endian, the last dimension changing fastest.

    The file is mapped into memory, so that processes that read it share the page cache. Multi-byte
    elements keep the file's byte order. Raise ``DatasetError`` if the file cannot be read, is not
    IDX, or is shorter or longer than its header declares.
    """
    try:
        with path.open("rb") as file:
            dtype, shape, offset = _read_header(path, file)
            expected, found = math.prod(shape) * dtype.itemsize, file.seek(0, 2) - offset
            if found != expected:
                raise DatasetError(
                    f"{path}: offset {offset}: cut short or too long: found {found} bytes of "
                    f"elements, expected {expected} for shape {shape}"
                )
            # A plain view: indexing np.memmap itself costs a Python call for every result.
            return np.asarray(np.memmap(file, dtype, "r", offset, shape))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _read_header(path: Path, file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return element type, shape and the offset of the first element."""
    start = file.read(4)
    if not (
        len(start) == 4
        and start[:2] == b"\0\0"
        and start[2] in IDX_TYPES
        and 1 <= start[3] <= MAX_IDX_DIMENSIONS
    ):
        codes = ", ".join(f"{code:02x}" for code in IDX_TYPES)
        raise DatasetError(
            f"{path}: offset 0: not an IDX file: found bytes {start.hex(' ')!r}, expected 00 00, "
            f"an element type ({codes}) and the number of dimensions (1 to {MAX_IDX_DIMENSIONS})"
        )
    rank = start[3]
    dimensions = file.read(4 * rank)
    if len(dimensions) < 4 * rank:
        raise DatasetError(
            f"{path}: offset 4: cut short in the header: found {len(dimensions)} bytes, "
            f"expected {4 * rank} for {rank} dimensions"
        )
    shape = struct.unpack(f">{rank}I", dimensions)
    if 0 in shape:
        raise DatasetError(f"{path}: offset 4: found shape {shape}, expected no dimension of 0")
    return IDX_TYPES[start[2]], shape, 4 + 4 * rank
