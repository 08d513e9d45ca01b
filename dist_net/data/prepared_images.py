"""The images of a folder, decoded and fitted once, in a file that every process maps.

In the cache lie, named by a digest of the files' names, sizes, times and the preprocessing:
``KEY.pixels``, a row of uint8 for each image, unless it would be too large; ``KEY.json``, which
says what was skipped, and is there only when all is done; and ``KEY.lock``, which is locked by the
process that prepares them, and shared by those that use them.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Self

import numpy as np
import PIL
from numpy.typing import NDArray

from dist_net.data.dataset import Dataset
from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_samples import (
    AugmentedImages,
    DecodedImages,
    ImagePreprocessing,
    MappedRows,
)
from dist_net.data.image_split import TRAIN, LeftOut
from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import FetchError, ImageFolderError
from dist_net.files import replacing
from dist_net.images import decoding, fitting
from dist_net.images.augmentation import Augmentation

CACHE_BYTES = 8 << 30
POLL_S = 0.05

Decode = Callable[[Path | None], Mapping[str, str]]
"""Writes a row for each image into a file, or only tries them, and gives what was skipped: the
reasons by path."""


class PreparedImages:
    """The images of a folder that can be used, by the part that they are of.

    A context, in which the file in the cache stays. Raises ImageFolderError if no image of a
    class is left to train on.
    """

    def __init__(
        self,
        folder: ImageFolder,
        preprocessing: ImagePreprocessing,
        pixels: NDArray[np.uint8] | None,
        skipped: Mapping[str, str],
        lock: IO[bytes],
    ) -> None:
        self.folder = folder
        self.preprocessing = preprocessing
        self.pixels = pixels
        self._skipped = skipped
        self._lock = lock
        trained = set(self.labels(TRAIN).tolist())
        for label, name in enumerate(folder.class_names):
            if label not in trained:
                self.close()
                raise ImageFolderError(
                    f"{folder.root}: every image of class {name!r} to train on was skipped; "
                    f"expected at least one that can be read; {next(iter(skipped.items()))}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file in the cache be removed when room is needed."""
        self._lock.close()

    @property
    def skipped(self) -> list[LeftOut]:
        """Every file that is not used, because of its name, its content, or its damage."""
        damaged = [LeftOut(path, reason) for path, reason in self._skipped.items()]
        return sorted([*self.folder.left_out, *damaged])

    def rows(self, part: str) -> SampleIndices:
        """The indices, in the folder's list, of the images of a part."""
        images = self.folder.images
        usable = [row for row in self.folder.of_part(part) if images[row].path not in self._skipped]
        return np.array(usable, np.int64)

    def labels(self, part: str) -> NDArray[np.int64]:
        """The class of each image of a part, (N,)."""
        return np.array(self.folder.labels, np.int64)[self.rows(part)]

    def samples(self, part: str) -> MappedRows | DecodedImages:
        """The images of a part."""
        return self._samples(self.rows(part))

    def usable_rows(self) -> SampleIndices:
        """The indices, in the folder's list, of all images that can be used, of whatever part."""
        images = enumerate(self.folder.images)
        return np.array([row for row, each in images if each.path not in self._skipped], np.int64)

    def usable_samples(self) -> MappedRows | DecodedImages:
        """The images of all parts, in the order of ``usable_rows``."""
        return self._samples(self.usable_rows())

    def _samples(self, rows: SampleIndices) -> MappedRows | DecodedImages:
        if self.pixels is not None:
            return MappedRows(self.pixels, rows)
        paths = [self.folder.images[row].path for row in rows]
        return DecodedImages(self.folder.root, paths, self.preprocessing)

    def dataset(self, test_part: str, augmentation: Augmentation | None = None) -> Dataset:
        """The images to train on, augmented if that is asked for, and those of ``test_part``."""
        train: Samples = self.samples(TRAIN)
        return Dataset(
            name=self.folder.root.resolve().name,
            train_inputs=AugmentedImages(train, augmentation) if augmentation else train,
            train_targets=self.labels(TRAIN),
            test_inputs=self.samples(test_part),
            test_targets=self.labels(test_part),
            class_names=self.folder.class_names,
        )


class ImageCache:
    """The place in a cache's directory of one folder's images, preprocessed in one way.

    ``cache_bytes`` is for all that lies there: beyond it what was not used for longest is removed,
    unless it is in use, and images that need more by themselves are not kept. Every method raises
    FetchError where the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        folder: ImageFolder,
        preprocessing: ImagePreprocessing,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._directory = directory / "images"
        self._folder = folder
        self._preprocessing = preprocessing
        self._cache_bytes = cache_bytes
        self._array_shape = (len(folder.images), *preprocessing.shape)
        self._bytes = int(np.prod(self._array_shape))

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits that change when a file, the preprocessing or its rules change."""
        digest = hashlib.sha256(PIL.__version__.encode())
        for module in (decoding, fitting):
            digest.update(inspect.getsource(module).encode())
        files = [(each.path, each.size_bytes, each.modified_ns) for each in self._folder.images]
        of = self._preprocessing
        digest.update(json.dumps([of.shape, of.fitting, of.max_pixels, files]).encode())
        return digest.hexdigest()[:32]

    def beside(self, kind: str) -> Path:
        """A file that is kept for as long as the images are."""
        return self._path(kind)

    def find(self) -> PreparedImages | None:
        """The images, if they are prepared."""
        with self._translated():
            lock = self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None if lock is None else self._opened(lock)

    def prepare(self, decode: Decode, waiting: Callable[[], None]) -> PreparedImages:
        """The images, decoded now unless they are there already.

        ``waiting`` is called before another process is waited for that prepares the same. Raises
        what ``decode`` raises, and then leaves nothing.
        """
        while True:
            with self._translated():
                lock = self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB)
                if lock is None:
                    waiting()
                    lock = self._lock(fcntl.LOCK_SH)
                assert lock is not None
                found = self._opened(lock)
                if found and (found.pixels is not None or self._bytes > self._cache_bytes):
                    return found
                lock.close()
                lock = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is None:  # another process was faster
                time.sleep(POLL_S)
                continue
            with closing(lock):
                self._fill(decode)

    def _fill(self, decode: Decode) -> None:
        """Has everything decoded; called with the lock."""
        with self._translated():
            is_stored = self._bytes <= self._cache_bytes
            if is_stored:
                self._make_room()
                with replacing(self._path("pixels")) as partial:
                    self._allocate(partial)
                    skipped = decode(partial)
            else:
                skipped = decode(None)
            record = {"images": len(self._folder.images), "is_stored": is_stored}
            with replacing(self._path("json")) as partial:
                partial.write_text(json.dumps(record | {"skipped": dict(skipped)}))

    def _opened(self, lock: IO[bytes]) -> PreparedImages | None:
        """The images, which take over the lock; None, and the lock is released, if not there."""
        try:
            record = json.loads(self._path("json").read_text())
            skipped = {str(path): str(reason) for path, reason in record["skipped"].items()}
            pixels = None
            if record["is_stored"]:
                # A file that is too short raises ValueError.
                pixels = np.memmap(self._path("pixels"), np.uint8, "r", shape=self._array_shape)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            lock.close()
            return None
        with suppress(OSError):  # for who makes room; not possible in others' caches
            os.utime(self._path("json"))
        return PreparedImages(self._folder, self._preprocessing, pixels, skipped, lock)

    def _make_room(self) -> None:
        """Removes what was not used for longest, and is not in use."""
        keys = {path.name.partition(".")[0] for path in self._directory.iterdir()} - {self.key}
        sizes = {
            key: sum(path.stat().st_size for path in self._files_of(key))
            for key in sorted(keys, key=self._last_use)
        }
        needed = self._bytes + sum(sizes.values()) - self._cache_bytes
        for key, size_bytes in sizes.items():
            if needed <= 0:
                return
            lock = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, key)
            if lock is not None:
                with closing(lock):
                    for path in self._files_of(key):
                        path.unlink()
                needed -= size_bytes

    def _last_use(self, key: str) -> float:
        return max((path.stat().st_mtime for path in self._files_of(key)), default=0.0)

    def _files_of(self, key: str) -> Iterator[Path]:
        """Its files but the lock, which others may be waiting for; the record first."""
        return (path for path in sorted(self._directory.glob(f"{key}.*")) if path.suffix != ".lock")

    def _allocate(self, path: Path) -> None:
        """A file with room for all rows, so that a full disk is noticed before the work."""
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self._bytes)
            else:  # macOS
                file.truncate(self._bytes)

    def _lock(self, operation: int, key: str = "") -> IO[bytes] | None:
        """The file of a lock, to be closed; None if it is held and not to be waited for."""
        self._directory.mkdir(parents=True, exist_ok=True)
        file = (self._directory / f"{key or self.key}.lock").open("ab")
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        return file

    def _path(self, kind: str) -> Path:
        return self._directory / f"{self.key}.{kind}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FetchError(
                f"{self._directory}: {error.strerror or error}; expected room for the prepared "
                f"images, {self._bytes:,} bytes: make some, or give a smaller "
                f"--cache-bytes"
            ) from error
