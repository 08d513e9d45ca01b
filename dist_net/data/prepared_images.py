"""The images of a folder, decoded and fitted once, in a file that every process maps.

``KEY`` is a digest of the files' names, sizes and times, and of the preprocessing. The cache
directory contains:

- ``KEY.pixels``: one row of uint8 per image; omitted if it would exceed the cache.
- ``KEY.features``: features of the images; the key is another.
- ``KEY.json``: the files, and the skipped images; written last, when the preparation is complete.
- ``KEY.lock``: locked exclusively by the process that prepares the images, shared by their users.
"""

import fcntl
import hashlib
import inspect
import json
import math
import os
import posixpath
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import PIL
from numpy.typing import NDArray

from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_split import TRAIN, VALIDATION, LeftOut
from dist_net.data.samples import ArraySamples, Dataset, SampleIndices, Samples
from dist_net.errors import DatasetError, FetchError, ImageError, RecipeError
from dist_net.ground.files import replacing
from dist_net.ground.json_records import record_from_json
from dist_net.images import decoding, fitting
from dist_net.images.augmentation import Augmentation
from dist_net.images.decoding import MAX_PIXELS
from dist_net.images.fitting import fit_image

CACHE_BYTES = 8 << 30
POLL_S = 0.05

Decode = Callable[[Path | None, Sequence[int]], Mapping[str, str]]
"""Decode the images with these indices, write their rows to the file unless it is None, and return
the reason for each skipped image, by path."""

Entry = dict[Path, os.stat_result]
"""The files of a key, the record before the pixels, without the lock."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """The arguments with which ``fit_image`` turns a file into an input, ``shape`` uint8."""

    shape: tuple[int, ...]
    fitting: str
    max_pixels: int = MAX_PIXELS

    def input_of(self, path: Path) -> NDArray[np.uint8]:
        """Return the image, decoded and fitted, ``shape`` uint8; raise ``ImageError``."""
        return fit_image(path, self.shape, self.fitting, self.max_pixels)


class DecodedImages:
    """Images that are decoded when they are read; all were readable when they were prepared."""

    def __init__(self, root: Path, paths: Sequence[str], preprocessing: ImagePreprocessing) -> None:
        self._root = root
        self._paths = paths
        self._preprocessing = preprocessing
        self.shape = preprocessing.shape
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        """Fill ``out`` with the images; raise ``DatasetError`` if one became unreadable."""
        for place, index in enumerate(indices.tolist()):
            try:
                out[place] = self._preprocessing.input_of(self._root / self._paths[index])
            except ImageError as error:
                raise DatasetError(
                    f"{error}; it could be read when the images were prepared; prepare them again"
                ) from error


class AugmentedImages:
    """Images with another random variant for training in each epoch, as ``AugmentedSamples``."""

    def __init__(self, images: Samples, augmentation: Augmentation) -> None:
        self._images = images
        self._augmentation = augmentation
        self.shape = images.shape
        self.dtype = images.dtype
        self.read = images.read

    def __len__(self) -> int:
        return len(self._images)

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[Any], seed: int, epoch: int
    ) -> None:
        """Fill ``out`` with each image's variant of this epoch."""
        self.read(indices, out)
        with_channels = out.reshape(*out.shape[:3], -1, copy=False)
        self._augmentation.apply(with_channels, seed, epoch, indices.tolist())


@dataclass(eq=False)
class PreparedImages(AbstractContextManager["PreparedImages"]):
    """The usable images of a folder, by part.

    The file stays in the cache within the context. Raise ``DatasetError`` for an empty class.
    """

    folder: ImageFolder
    preprocessing: ImagePreprocessing
    pixels: NDArray[np.uint8] | None
    _skipped: Mapping[str, str]
    _lock: IO[bytes]

    def __post_init__(self) -> None:
        trained = set(self.labels(TRAIN).tolist())
        for label, name in enumerate(self.folder.class_names):
            if label not in trained:
                self.close()
                raise DatasetError(
                    f"{self.folder.root}: every image of class {name!r} to train on was skipped; "
                    f"expected at least one that can be read; {next(iter(self._skipped.items()))}"
                )

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, so that the cache may remove the file to free space."""
        self._lock.close()

    @property
    def skipped(self) -> list[LeftOut]:
        """Return every unused file, whether for its name, for its content or for damage."""
        damaged = [LeftOut(path, reason) for path, reason in self._skipped.items()]
        return sorted([*self.folder.left_out, *damaged])

    def rows(self, part: str | None = None) -> SampleIndices:
        """Return the indices of a part's usable images in the folder's list, ``(N,)`` int64."""
        rows = [
            row
            for row, each in enumerate(self.folder.images)
            if each.path not in self._skipped and part in (None, each.part)
        ]
        return np.array(rows, np.int64)

    def labels(self, part: str) -> NDArray[np.int64]:
        """Return the class index of each usable image of a part, ``(N,)`` int64."""
        return np.array(self.folder.labels, np.int64)[self.rows(part)]

    def samples(self, part: str | None = None) -> ArraySamples | DecodedImages:
        """Return a part's usable images; None: those of all parts, in the folder's order."""
        rows = self.rows(part)
        if self.pixels is not None:
            return ArraySamples(self.pixels, rows)
        paths = [self.folder.images[row].path for row in rows]
        return DecodedImages(self.folder.root, paths, self.preprocessing)

    def dataset(self, test_part: str, augmentation: Augmentation | None = None) -> Dataset:
        """Return the training images, with ``augmentation`` if given, and ``test_part``."""
        train: Samples = self.samples(TRAIN)
        return Dataset(
            name=self.folder.root.resolve().name,
            train_inputs=AugmentedImages(train, augmentation) if augmentation else train,
            train_targets=self.labels(TRAIN),
            test_inputs=self.samples(test_part),
            test_targets=self.labels(test_part),
            class_names=self.folder.class_names,
        )


@dataclass(frozen=True)
class ImageCache:
    """The cache entry of one folder's images with one preprocessing.

    ``cache_bytes`` limits the whole cache directory. To make room, the least recently used entries
    are removed, except those in use; images that exceed the limit by themselves are not stored.
    Networks are evaluated on ``test_part`` during training. ``digests`` are the SHA-256 of the
    usable images' pixels, in hexadecimal; none until they are computed. Every method except
    ``to_json`` and ``read`` raises ``FetchError`` if the directory is not usable.
    """

    cache_dir: Path
    folder: ImageFolder
    preprocessing: ImagePreprocessing
    cache_bytes: int = CACHE_BYTES
    test_part: str = VALIDATION
    digests: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file written from ``to_json``; raise ``RecipeError`` for any other content."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if "pictures" in told["folder"]:  # the key until 0.1.0
                told["folder"]["images"] = told["folder"].pop("pictures")
            return record_from_json(cls, told)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{path}: {error}; expected the list of images that 'dist-net train FOLDER' writes"
            ) from error

    @property
    def _directory(self) -> Path:
        return self.cache_dir / "images"

    @property
    def _array_shape(self) -> tuple[int, ...]:
        return len(self.folder.images), *self.preprocessing.shape

    @property
    def _bytes(self) -> int:
        return math.prod(self._array_shape)

    @cached_property
    def key(self) -> str:
        """Return 32 hexadecimal digits that depend on the files, the preprocessing and its code."""
        return _digest(self._preparation, self._files)

    @cached_property
    def _preparation(self) -> str:
        """Return hexadecimal digits that depend on the preprocessing and its code."""
        of = self.preprocessing
        code = [inspect.getsource(module) for module in (decoding, fitting)]
        return _digest(PIL.__version__, *code, of.shape, of.fitting, of.max_pixels)

    @cached_property
    def _files(self) -> list[tuple[str, int, int]]:
        return [(each.path, each.size_bytes, each.modified_ns) for each in self.folder.images]

    @property
    def _root(self) -> str:
        return str(self.folder.root.resolve())

    def features(self, *of: object) -> Path:
        """Return the file of the folder's features, which are computed as ``of`` describes."""
        return self._directory / f"{_digest(self._root, of)}.features"

    def find(self) -> PreparedImages | None:
        """Return the images, or None if they are not prepared."""
        with self._translated():
            lock = self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None if lock is None else self._opened(lock)

    def prepare(self, decode: Decode, waiting: Callable[[], None]) -> PreparedImages:
        """Return the images, and decode them first unless they are already prepared.

        Call ``waiting`` before blocking on another process. Store nothing if ``decode`` raises.
        """
        while True:
            with self._translated():
                lock = self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB)
                if lock is None:
                    waiting()
                    lock = self._lock(fcntl.LOCK_SH)
                assert lock is not None
                found = self._opened(lock)
                if found and (found.pixels is not None or self._bytes > self.cache_bytes):
                    return found
                lock.close()
                lock = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is None:  # another process was faster
                time.sleep(POLL_S)
                continue
            with closing(lock):
                self._fill(decode)

    def _fill(self, decode: Decode) -> None:
        """Decode all images and write the record; the caller must hold the exclusive lock."""
        with self._translated():
            is_stored = self._bytes <= self.cache_bytes
            if is_stored:
                self._make_room()
                with replacing(self._path("pixels")) as partial:
                    with partial.open("wb") as file:  # a full disk raises before any decoding
                        if hasattr(os, "posix_fallocate"):
                            os.posix_fallocate(file.fileno(), 0, self._bytes)
                        else:  # macOS
                            file.truncate(self._bytes)
                    skipped = decode(partial, self._copy_rows(partial))
            else:
                skipped = decode(None, range(len(self._files)))
            record = {
                "source": [self._root, self._preparation],
                "files": self._files,
                "is_stored": is_stored,
                "skipped": dict(skipped),
            }
            with replacing(self._path("json")) as partial:
                partial.write_text(json.dumps(record))

    def _copy_rows(self, path: Path) -> list[int]:
        """Copy the rows that the newest entry has, also of moved images; return the others."""
        row_bytes, missing = math.prod(self.preprocessing.shape), []
        row_of, pixels = self._newest_rows()
        with path.open("r+b") as file:
            for row, (name, *facts) in enumerate(self._files):
                moved = row_of.get((posixpath.basename(name), *facts))
                before = row_of.get((name, *facts), moved)
                if before is None:
                    missing.append(row)
                else:
                    file.seek(row * row_bytes)
                    file.write(pixels[before].data)
        return missing

    def _newest_rows(self) -> tuple[dict[tuple[str | int, ...], int | None], NDArray[np.uint8]]:
        """Return the newest entry's rows by path or name, size and time; None: a shared name."""
        rows: dict[tuple[str | int, ...], int | None] = {}
        for entry in sorted(self._entries().values(), key=_last_use, reverse=True):
            path = next(iter(entry))
            if path.suffix != ".json":
                continue
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(path.read_text())
                if record["source"] != [self._root, self._preparation]:
                    continue
                files = record["files"]
                shape = len(files), *self.preprocessing.shape
                pixels = np.memmap(path.with_suffix(".pixels"), np.uint8, "r", shape=shape)
                for row, (name, *facts) in enumerate(files):
                    for key in {(name, *facts), (posixpath.basename(name), *facts)}:
                        rows[key] = None if key in rows or name in record["skipped"] else row
                return rows, pixels
        return rows, np.empty(0, np.uint8)

    def _opened(self, lock: IO[bytes]) -> PreparedImages | None:
        """Return the images, which own the lock; if not prepared, release it and return None."""
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
        with suppress(OSError):  # the time of last use; fails in another user's cache
            os.utime(self._path("json"))
        return PreparedImages(self.folder, self.preprocessing, pixels, skipped, lock)

    def _make_room(self) -> None:
        """Remove the least recently used entries, except those in use."""
        entries = self._entries()
        entries.pop(self.key, None)
        sizes = {key: sum(each.st_size for each in entries[key].values()) for key in entries}
        needed = self._bytes + sum(sizes.values()) - self.cache_bytes
        for key in sorted(entries, key=lambda key: _last_use(entries[key])):
            if needed <= 0:
                return
            lock = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, key)
            if lock is not None:
                with closing(lock):
                    for path in entries[key]:
                        path.unlink(missing_ok=True)
                needed -= sizes[key]

    def _entries(self) -> dict[str, Entry]:
        """Return all entries by key, without their locks: others may await those."""
        entries: dict[str, Entry] = {}
        for path in sorted(self._directory.iterdir()):
            if path.suffix != ".lock":
                with suppress(FileNotFoundError):  # another process makes room, too
                    entries.setdefault(path.name.partition(".")[0], {})[path] = path.stat()
        return entries

    def _lock(self, operation: int, key: str = "") -> IO[bytes] | None:
        """Return the locked file, which the caller must close; None if ``LOCK_NB`` fails."""
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


def _last_use(entry: Entry) -> float:
    return max(each.st_mtime for each in entry.values())


def _digest(*of: object) -> str:
    """Return 32 hexadecimal digits."""
    return hashlib.sha256(repr(of).encode(errors="surrogateescape")).hexdigest()[:32]
