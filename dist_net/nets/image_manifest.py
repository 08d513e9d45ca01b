"""The manifest of a folder of images, which another host checks its copy against."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_split import PARTS, LabelledImage
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.errors import DatasetError, RecipeError
from dist_net.json_records import record_from_json

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
_UNREADABLE = "none"
"""Replaces the digest of an unreadable file, which is not used."""


class ListedImage(NamedTuple):
    """An image that a run uses; ``path`` is relative to the folder, with slashes."""

    path: str
    class_name: str
    part: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ImageManifest:
    """The images of a run, their classes and their preprocessing."""

    images: tuple[ListedImage, ...]
    class_names: tuple[str, ...]
    preprocessing: ImagePreprocessing
    test_part: str

    @classmethod
    def of(cls, cache: ImageCache) -> Self:
        """Return the manifest of the images; reads every file of the folder to digest it."""
        listed = [
            ListedImage(*each[:4], _sha256(cache.folder.root / each.path))
            for each in cache.folder.images
            if each.part
        ]
        return cls(tuple(listed), cache.folder.class_names, cache.preprocessing, cache.test_part)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse the output of ``to_json``; raise ``RecipeError`` for any other text."""
        try:
            manifest = record_from_json(cls, json.loads(text))
            manifest._check()
        except (ValueError, TypeError, RecursionError) as error:
            raise RecipeError(
                f"the server's list of images is {str(text)[:60]!r} ({error}); expected that of "
                f"'dist-net train FOLDER'"
            ) from error
        return manifest

    def _check(self) -> None:
        for path, class_name, part, *_ in self.images:
            place = PurePosixPath(path)
            if place.is_absolute() or ".." in place.parts or "\0" in path:
                raise ValueError(f"a path that leads elsewhere, {path!r}")
            if class_name not in self.class_names or part not in PARTS:
                raise ValueError(f"{path!r} of class {class_name!r} and part {part!r}")

    def found_in(self, root: Path) -> ImageFolder:
        """Return the manifest's images in a folder of this host, which may contain other files.

        Raise ``DatasetError`` with the first image that differs and the number of differences.
        """
        if not root.is_dir():
            raise DatasetError(f"{root} is no folder; expected the run's, with {self}")
        found: list[LabelledImage] = []
        differences: list[str] = []
        for listed in self.images:
            path = root / listed.path
            try:
                status = path.stat()
            except OSError as error:
                differences.append(f"{listed.path} cannot be read here ({error.strerror})")
                continue
            if status.st_size != listed.size_bytes:
                differences.append(
                    f"{listed.path} has {status.st_size:,} bytes here, and {listed.size_bytes:,} "
                    f"there"
                )
            elif _sha256(path) != listed.sha256:
                differences.append(f"{listed.path} has another content here")
            found.append(LabelledImage(*listed[:4], status.st_mtime_ns))
        if differences:
            raise DatasetError(
                f"{root} is not the folder that the server trains on: {len(differences):,} of "
                f"{len(self.images):,} images differ; the first: {differences[0]}; expected "
                f"the same files: copy the folder again"
            )
        return ImageFolder(root, tuple(found), self.class_names, ())

    def __str__(self) -> str:
        return f"{len(self.images):,} images of {len(self.class_names)} classes"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return _UNREADABLE
