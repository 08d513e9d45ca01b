"""List the files of a folder of labelled images, with the class and the part of each file.

Read names, sizes and times, and the content of files of equal size; decoding is left for later.
"""

import csv
import hashlib
import os
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Self

import numpy as np

from dist_net.data import image_split
from dist_net.data.collection import Collection
from dist_net.data.image_split import (
    MIN_GROUPS,
    MIN_NEW_IMAGES,
    TEST,
    TRAIN,
    VALIDATION,
    LabelledImage,
    LeftOut,
    WaitingClass,
)
from dist_net.errors import DatasetError
from dist_net.images.decoding import refusal_of_format

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff".split()  # noqa: SIM905
)
ISO_SUFFIXES = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}
KINDS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
PARTS_BY_NAME = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
LAYOUTS = "CLASS/*.jpg, or train/CLASS/*.jpg with val/ or test/ beside it"
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class ImageFolder:
    """A folder's images, sorted by path; the sorted class names; and the files left out.

    ``has_validation``: the validation images are from ``val/``; otherwise they were split off.
    ``new_classes``: classes that only a collection has; ``waiting``: those that have no part yet.
    """

    root: Path
    images: tuple[LabelledImage, ...]
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    has_validation: bool = False
    new_classes: tuple[str, ...] = ()
    waiting: tuple[WaitingClass, ...] = ()

    @classmethod
    def read(
        cls,
        path: str | Path,
        labels_csv: str | Path | None = None,
        validation: float = VALIDATION_SHARE,
        seed: int = 0,
        run_directory: Path | None = None,
        collection: Collection | None = None,
    ) -> Self:
        """List a folder: ``CLASS/...``, or ``train/CLASS/...`` with ``val/`` or ``test/`` beside.

        With ``labels_csv``, a file of rows ``path,label`` or ``path,label,part``, only the listed
        paths are used; they are relative to the folder. Without validation images, a share of
        ``validation`` is split off at random, seeded by ``seed``. ``run_directory``, the run's
        output directory, must not contain the folder or be inside it. The labels of a
        ``collection`` outrank the others, and its images are added. Raises ``DatasetError``.
        """
        root = Path(path)
        if not root.is_dir():
            what = "is no folder" if root.exists() else "is not there"
            raise DatasetError(f"{root} {what}; expected a folder of images: {LAYOUTS}")
        if not 0 < validation < 1:
            raise DatasetError(
                f"validation={validation:g}: expected a share between 0 and 1, such as 0.2"
            )
        if run_directory is not None:
            require_apart(root, run_directory)
        listing = _Listing(root)
        if labels_csv is None:
            listing.add_folders()
        else:
            listing.add_labelled(Path(labels_csv))
        before = listing.class_names
        if collection is not None:
            listing.add_taught(collection.current_labels(), collection.images)
        class_names = listing.require_classes()
        contents = _contents(root, listing.images)
        images, contradictions = image_split.without_contradictions(listing.images, contents)
        has_validation = any(image.part == VALIDATION for image in images)
        if not has_validation:
            # Split the images of train/ like a folder without parts.
            images = [each._replace(part=each.part.replace(TRAIN, "")) for each in images]
        images = image_split.with_validation_split_off(images, contents, validation, seed)
        left_out = sorted([*listing.left_out, *contradictions])
        new = tuple(sorted({*class_names} - before))
        split, waiting = (has_validation, new), tuple(listing.waiting.values())
        found = cls(root, tuple(sorted(images)), class_names, tuple(left_out), *split, waiting)
        found._require_split("the others lie in another class or part as well")
        return found

    def regrouped(self, groups: Sequence[int], validation: float, seed: int) -> Self:
        """Return the folder with every group of images on one side of each split.

        ``groups`` has the group number of each image, ``(N,)``; see ``divided_groups`` for classes
        of few groups. Validation images that were split off are split off again. Images that share
        a group with an image of ``test/`` lose their part and are left out, and so do new classes
        of few groups. Raise ``DatasetError`` if a class has no training image left, or the folder
        no validation image.
        """
        tested = {groups[row]: self.images[row].path for row in self.of_part(TEST)}
        of_class = defaultdict(set)
        for image, group in zip(self.images, groups, strict=True):
            of_class[image.class_name].add(group)
        counts = Counter(each.class_name for each in self.images)
        early = {
            each: WaitingClass(each, counts[each], len(of_class[each]))
            for each in self.new_classes
            if len(of_class[each]) < MIN_GROUPS
        }
        images, left_out = [], list(self.left_out)
        for image, group in zip(self.images, groups, strict=True):
            like, name, part = tested.get(group), image.class_name, image.part
            if name in early:
                left_out.append(LeftOut(image.path, str(early[name])))
                part = "left out"
            elif like is not None and part != TEST:
                if part:
                    reason = f"nearly the same image as {like}, in test/"
                    left_out.append(LeftOut(image.path, reason))
                part = "left out"
            images.append(image._replace(part=part))
        if not self.has_validation:
            rows = [row for row, each in enumerate(images) if each.part in (TRAIN, VALIDATION)]
            of_rows = (np.array(each)[rows] for each in (groups, self.labels))
            contents = {}
            for row, group in zip(rows, image_split.divided_groups(*of_rows).tolist(), strict=True):
                images[row] = images[row]._replace(part="")
                contents[images[row].path] = str(group)
            images = image_split.with_validation_split_off(images, contents, validation, seed)
        kept = tuple(each._replace(part=each.part.replace("left out", "")) for each in images)
        names = tuple(each for each in self.class_names if each not in early)
        waiting = (*self.waiting, *early.values())
        found = replace(
            self, images=kept, class_names=names, left_out=tuple(sorted(left_out)), waiting=waiting
        )
        found._require_split("the others are nearly the same as images in test/; see --no-groups")
        return found

    def _require_split(self, lost: str) -> None:
        """Raise ``DatasetError`` unless each class is trained, and an image is left to validate."""
        trained = {self.images[row].class_name for row in self.of_part(TRAIN)}
        for name in self.class_names:
            if name not in trained:
                raise DatasetError(
                    f"{self.root}: class {name!r} has no image left to train on; {lost}; expected "
                    f"at least one"
                )
        if not self.of_part(VALIDATION):
            raise DatasetError(
                f"{self.root}: no image is left to validate on; expected a class with at least two "
                f"different images that are not in test/"
            )

    def of_part(self, part: str) -> list[int]:
        return [index for index, each in enumerate(self.images) if each.part == part]

    @property
    def labels(self) -> list[int]:
        """Return the class index of each image; -1 for images left out of a class that is."""
        index_of = {name: index for index, name in enumerate(self.class_names)}
        return [index_of.get(each.class_name, -1) for each in self.images]


def require_apart(root: Path, run_directory: Path) -> None:
    """Raise ``DatasetError`` if either directory contains the other."""
    images, run = root.resolve(), run_directory.resolve()
    if images.is_relative_to(run) or run.is_relative_to(images):
        raise DatasetError(
            f"the run's directory {run_directory} and the images {root} contain each other; "
            f"expected separate directories: pass another --run-dir"
        )


class _Listing:
    """The images found so far, and the files left out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.images: list[LabelledImage] = []
        self.left_out: list[LeftOut] = []
        self.class_names: frozenset[str] = frozenset()
        self.waiting: dict[str, WaitingClass] = {}

    def add_folders(self) -> None:
        """Add the images of every class, in every part if the folder has parts."""
        folders = self._folders_in("")
        parts = {name: PARTS_BY_NAME.get(name.casefold(), "") for name in folders}
        is_train_alone = [*parts.values()] == [TRAIN]
        has_parts = TRAIN in parts.values() and {VALIDATION, TEST} & {*parts.values()}
        if not (is_train_alone or has_parts):
            for name in folders:
                self._add_class(name, name, "")
            return
        for folder, part in parts.items():
            if not part:
                self.left_out.append(LeftOut(folder, "a folder beside train/ that is no part"))
                continue
            for name in self._folders_in(folder):
                self._add_class(f"{folder}/{name}", name, part)

    def _folders_in(self, folder: str) -> list[str]:
        names = []
        for name, path, found in self._entries(folder):
            if S_ISDIR(found.st_mode):
                names.append(name)
            else:
                self.left_out.append(LeftOut(path, "lies in no class's folder"))
        return names

    def _add_class(self, folder: str, class_name: str, part: str) -> None:
        """Add the images of a folder and its subfolders; visit each once, in case links loop."""
        self.class_names |= {class_name}
        top = (self._root / folder).stat()
        visited = {(top.st_dev, top.st_ino)}
        waiting = [folder]
        while waiting:
            for _, path, found in self._entries(waiting.pop()):
                if S_ISDIR(found.st_mode):
                    identity = (found.st_dev, found.st_ino)
                    if identity in visited:
                        self.left_out.append(LeftOut(path, "a link to a folder that is read once"))
                    else:
                        visited.add(identity)
                        waiting.append(path)
                elif (reason := refusal_of_name(path)) is not None:
                    self.left_out.append(LeftOut(path, reason))
                else:
                    self._add(path, class_name, part, found)

    def _entries(self, folder: str) -> Iterator[tuple[str, str, os.stat_result]]:
        """Yield name, path from the root and ``stat`` of each file and subfolder, sorted."""
        try:
            names = sorted(each.name for each in (self._root / folder).iterdir())
        except OSError as error:
            self.left_out.append(LeftOut(folder, f"cannot be read: {error.strerror}"))
            return
        for name in names:
            path = posixpath.join(folder, name)
            if name.startswith("."):
                self.left_out.append(LeftOut(path, "its name begins with a dot"))
                continue
            try:
                found = (self._root / path).stat()
            except OSError as error:
                self.left_out.append(LeftOut(path, f"cannot be read: {error.strerror}"))
                continue
            if S_ISDIR(found.st_mode) or S_ISREG(found.st_mode):
                yield name, path, found
            else:
                self.left_out.append(LeftOut(path, "neither a file nor a folder"))

    def _add(self, path: str, class_name: str, part: str, found: os.stat_result) -> None:
        self.images.append(LabelledImage(path, class_name, part, found.st_size, found.st_mtime_ns))

    def add_labelled(self, labels_csv: Path) -> None:
        """Add the images listed in a file of rows ``path,label`` or ``path,label,part``.

        Ignores a third column that contains anything but parts. Raise ``DatasetError``.
        """
        label_of: dict[str, str] = {}
        rows = list(_rows(labels_csv))
        parts = {row[3]: PARTS_BY_NAME.get(row[3].casefold()) for row in rows if row[3]}
        if None in parts.values():
            unused = f"its third column is not used; parts are {', '.join(PARTS_BY_NAME)}"
            self.left_out.append(LeftOut(str(labels_csv), unused))
            parts = {}
        for line, given, label, third in rows:
            at = f"{labels_csv}, line {line}: {given!r}"
            path = posixpath.normpath(given)
            if Path(given).is_absolute():
                path = os.path.relpath(given, self._root.absolute())
            if path.startswith("../"):
                raise DatasetError(f"{at} lies outside {self._root}; expected a path within it")
            if label_of.setdefault(path, label) != label:
                raise DatasetError(
                    f"{at} is labelled {label!r}, and {label_of[path]!r} before; expected one label"
                )
            if not label:
                raise DatasetError(f"{at} has no label; expected path,label")
            try:
                found = (self._root / path).stat()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise DatasetError(
                    f"{at} cannot be read: {reason}; expected a path relative to {self._root}"
                ) from error
            if not S_ISREG(found.st_mode):
                raise DatasetError(f"{at} is no file; expected an image's path")
            self.class_names |= {label}
            self._add(path, label, parts.get(third) or "", found)
        self.images = list(dict.fromkeys(self.images))

    def add_taught(self, labels: Mapping[str, str | None], stored: Path) -> None:
        """Replace the labels of images by ``labels``, by digest, and add the stored images.

        A new class takes part once it has ``MIN_NEW_IMAGES``; one without an image left does not.
        """
        had = {each.class_name for each in self.images}
        is_divided = any(each.part for each in self.images)
        digests = {each.path: digest_of(self._root, each) for each in self.images}
        listed = {*digests.values()}
        for digest, label in labels.items():
            if digest not in listed and label is not None:
                try:
                    found = (stored / digest).stat()
                except OSError as error:
                    self.left_out.append(LeftOut(digest, f"cannot be read: {error.strerror}"))
                    continue
                path = os.path.relpath(stored / digest, self._root.absolute())
                digests[path] = digest
                self._add(path, label, TRAIN if is_divided else "", found)
        names = [labels.get(digests[each.path], each.class_name) for each in self.images]
        counts = Counter(names)
        taught, self.images = self.images, []
        for image, name in zip(taught, names, strict=True):
            if name is None:
                self.left_out.append(LeftOut(image.path, "labelled as of none of the classes"))
            elif name not in self.class_names and counts[name] < MIN_NEW_IMAGES:
                self.waiting[name] = WaitingClass(name, counts[name], None)
                self.left_out.append(LeftOut(image.path, str(self.waiting[name])))
            else:
                self.images.append(image._replace(class_name=name))
        gone = had - {each.class_name for each in self.images}
        self.class_names = (self.class_names - gone) | {each.class_name for each in self.images}

    def require_classes(self) -> tuple[str, ...]:
        """Return the class names, sorted; raise ``DatasetError`` if training is impossible."""
        if not self.images:
            raise DatasetError(
                f"{self._root}: no images; expected {KINDS} files as {LAYOUTS}"
                f"{_first_of(self.left_out)}"
            )
        names = sorted(self.class_names)
        same: dict[str, str] = {}
        for name in names:
            if not name.isprintable():
                raise DatasetError(
                    f"{self._root}: a class is called {name!a}; expected a name that can be printed"
                )
            other = same.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if other != name:
                raise DatasetError(
                    f"{self._root}: classes {other!r} and {name!r} differ only in case, or in how "
                    f"letters are composed; expected names that differ: rename or merge them"
                )
        counts = Counter(each.class_name for each in self.images if each.part in ("", TRAIN))
        for name in names:
            if not counts[name]:
                where = " in train/" if self.images[0].part else ""
                of_class = [each for each in self.left_out if name in Path(each.path).parts]
                raise DatasetError(
                    f"{self._root}: class {name!r} has no images{where}; expected at least one "
                    f"{KINDS} file: add some, or remove the class{_first_of(of_class)}"
                )
        if len(names) == 1:
            raise DatasetError(
                f"{self._root}: one class, {names[0]!r}; expected at least two, each in a folder "
                f"of its own: {LAYOUTS}"
            )
        return tuple(names)


def _first_of(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    more = f", and {len(left_out) - 1:,} more" if len(left_out) > 1 else ""
    return f"; left out: {left_out[0].path} ({left_out[0].reason}){more}"


def refusal_of_name(path: str) -> str | None:
    """Return None if the file is named like an image that this host can decode, else the reason."""
    suffix = posixpath.splitext(path)[1].casefold()
    if suffix in IMAGE_SUFFIXES:
        return None
    if (kind := ISO_SUFFIXES.get(suffix)) is None:
        return f"not named like a {KINDS} file"
    return refusal_of_format(kind)


def _rows(labels_csv: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield line, path, label and third field of each row, separated by "," or ";".

    The first row is a header if its path lacks the suffix of an image. Raises ``DatasetError``.
    """
    try:
        with labels_csv.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=";" if ";" in head and "," not in head else ",")
            is_first = True
            for row in reader:
                if not row:
                    continue
                if len(row) not in (2, 3):
                    raise DatasetError(
                        f"{labels_csv}, line {reader.line_num}: {len(row)} fields; expected 2 or "
                        f"3: path,label or path,label,part"
                    )
                path, label, *rest = (field.strip() for field in row)
                if not (is_first and refusal_of_name(path) is not None):
                    yield reader.line_num, path, label, rest[0] if rest else ""
                is_first = False
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        found, expected = getattr(error, "strerror", error), "UTF-8 text of rows path,label"
        raise DatasetError(f"labels {labels_csv}: {found}; expected {expected}") from error


def _contents(root: Path, images: Sequence[LabelledImage]) -> dict[str, str]:
    """Map each path to its content: the SHA-256 if sizes are equal, else the unique path."""
    of_size: dict[int, list[LabelledImage]] = defaultdict(list)
    for image in images:
        of_size[image.size_bytes].append(image)
    contents = {image.path: image.path for image in images}
    for size_bytes, alike in of_size.items():
        if size_bytes and len(alike) > 1:
            contents |= {each.path: digest_of(root, each) or each.path for each in alike}
    return contents


def digest_of(root: Path, image: LabelledImage) -> str:
    """Return ``file_digest``, which is computed once until the file changes."""
    return _known_digest(root / image.path, image.size_bytes, image.modified_ns)


@lru_cache(maxsize=1 << 17)
def _known_digest(path: Path, size_bytes: int, modified_ns: int) -> str:  # noqa: ARG001
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 in hexadecimal; "" if unreadable, which decoding reports later."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
