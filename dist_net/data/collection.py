"""The labels that people set for the images of a run: a log, and the images its folder lacks.

    RUN/collection/labels.sqlite    each label and each withdrawal, in the order in which they came
    RUN/collection/images/SHA256    an image that is not in the folder, stored once
    RUN/collection/unlabelled/      images that clients sent, until they are labelled or evicted
    RUN/collection/queue.json       images to label, which most would change the model first

An image is known by the SHA-256 of its file. Its current label is the latest that was not
withdrawn; it outranks the label in the folder or the CSV file. A label is on the disk once the
method that sets it returns.
"""

import hashlib
import json
import sqlite3
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from dist_net.errors import CollectionError
from dist_net.ground.files import replacing

MAX_LABEL = 100
MAX_TEACHER = 64
MAX_CLASSES = 1000
MAX_BYTES = 4 << 30
"""The size of all stored images together."""
SIMILAR = 0.75
DIGEST_LENGTH = 64
BUSY_S = 10.0
VERSION = 1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS labels (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, teacher TEXT NOT NULL, image TEXT NOT NULL,
    label TEXT, replaces INTEGER REFERENCES labels, withdraws INTEGER UNIQUE REFERENCES labels
);
CREATE INDEX IF NOT EXISTS of_image ON labels (image);
PRAGMA user_version = {VERSION};
"""
FROM = """
FROM labels LEFT JOIN labels AS later ON later.withdraws = labels.number
WHERE labels.withdraws IS NULL
"""
COLUMNS = "number", "at", "teacher", "image", "label", "replaces"
SELECT = f"SELECT {', '.join(f'labels.{name}' for name in COLUMNS)}, later.number {FROM}"
IS_CURRENT = "AND later.number IS NULL"


class Label(NamedTuple):
    """A row of the log; ``label`` is None for an image of none of the classes.

    ``at`` is in seconds since 1970. ``replaces`` is the number of the current label before,
    ``withdrawn_by`` the number of the withdrawal; None without one.
    """

    number: int
    at: float
    teacher: str
    image: str
    label: str | None
    replaces: int | None
    withdrawn_by: int | None


class UnlabelledImage(NamedTuple):
    """An image that a client sent: its file, named SHA256-MARGIN, and when it was sent.

    ``margin`` is the difference of the two largest probabilities of its answer, in thousandths.
    ``at`` is in seconds since 1970.
    """

    path: Path
    bytes: int
    at: float

    @property
    def digest(self) -> str:
        return self.path.name[:DIGEST_LENGTH]

    @property
    def margin(self) -> int:
        return int(self.path.name[DIGEST_LENGTH + 1 :])


def unlabelled_images(directory: Path) -> list[UnlabelledImage]:
    """Return the images in ``unlabelled/`` of a collection, the oldest first."""
    found = []
    for path in directory.glob("*-*"):
        # One that is half-written has a suffix; one that is gone was labelled meanwhile.
        with suppress(OSError, ValueError):
            int(path.name[DIGEST_LENGTH + 1 :])
            found.append(UnlabelledImage(path, (status := path.stat()).st_size, status.st_mtime))
    return sorted(found, key=lambda each: each.at)


class Collection(AbstractContextManager["Collection"]):
    """A run's labels. Several processes may use it at once, each with its own object.

    Every method raises ``CollectionError`` for a log that is damaged, locked or full.
    """

    def __init__(self, directory: Path) -> None:
        self.images = directory / "images"
        self.unlabelled = directory / "unlabelled"
        self.queue = directory / "queue.json"
        self._path = directory / "labels.sqlite"
        if directory.is_symlink():
            raise CollectionError(
                f"{directory} is a link; expected a directory of this run alone: copy the labels "
                f"of another run with: dist-net labels RUN export"
            )
        with self._translated():
            self.images.mkdir(parents=True, exist_ok=True)
            self._log = sqlite3.connect(self._path, BUSY_S, isolation_level=None)
            try:
                self._log.execute("PRAGMA journal_mode = WAL")
                self._log.execute("PRAGMA synchronous = FULL")
                (version,) = self._log.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    self._log.executescript(SCHEMA)
                elif version != VERSION:
                    raise CollectionError(
                        f"{self._path} has version {version}; expected {VERSION}: update dist_net"
                    )
            except BaseException:
                self._log.close()
                raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._log.close()

    def set_label(
        self,
        image: str | bytes,
        label: str | None,
        teacher: str,
        classes: Iterable[str],
        *,
        is_new: bool = False,
    ) -> Label:
        """Set the label of an image, or None; return its current label, which is on the disk.

        A label that resembles one of the folder's ``classes``, or one in the log, is refused unless
        it ``is_new``. The current label is not set again by the same teacher. ``image``: a digest,
        or the content of a file, which is stored once; an unlabelled image is moved.
        """
        content = image if isinstance(image, bytes) else None
        if isinstance(image, bytes):
            image = hashlib.sha256(image).hexdigest()
        if len(image) != DIGEST_LENGTH or image.strip("0123456789abcdef"):
            raise CollectionError(
                f"image {image[:80]!r}: expected 64 hexadecimal digits of SHA-256"
            )
        with self._transaction() as log:
            if label is not None:
                label = _checked(label, {*classes, *self._names()}, is_new=is_new)
            before = self._current(image)
            if before is not None and (before.label, before.teacher) == (label, teacher):
                return before
            row = time.time(), _named(teacher), image, label, before and before.number
            path, sent = self.images / image, [*self.unlabelled.glob(f"{image}-*")]
            if not path.exists() and (content or sent):
                content = content or sent[0].read_bytes()
                self._require_room(len(content))
                with replacing(path) as partial:
                    partial.write_bytes(content)
            sql = "INSERT INTO labels (at, teacher, image, label, replaces) VALUES (?, ?, ?, ?, ?)"
            number = log.execute(sql, row).lastrowid
            assert number is not None
        for each in sent:
            each.unlink(missing_ok=True)
        return Label(number, *row, None)

    def withdraw(self, numbers: Iterable[int] = (), teacher: str | None = None) -> list[int]:
        """Withdraw labels by number, or all labels of a teacher; return the numbers withdrawn now.

        The images have their earlier labels again. Raise ``CollectionError`` for an unknown number.
        """
        with self._transaction() as log:
            labels = {each.number: each for each in self.labels()}
            of_teacher = (n for n, each in labels.items() if each.teacher == teacher)
            chosen = dict.fromkeys([*numbers, *of_teacher])
            for number in chosen:
                if number not in labels:
                    raise CollectionError(
                        f"label {number} is not in {self._path}; expected a number that 'dist-net "
                        f"labels RUN' lists"
                    )
            withdrawn = [each for each in chosen if labels[each].withdrawn_by is None]
            log.executemany(
                "INSERT INTO labels (at, teacher, image, withdraws) VALUES (?, ?, ?, ?)",
                [
                    (time.time(), labels[number].teacher, labels[number].image, number)
                    for number in withdrawn
                ],
            )
        return withdrawn

    def changes(self) -> int:
        """Return a number that differs whenever another object has changed the log."""
        with self._translated():
            (number,) = self._log.execute("PRAGMA data_version").fetchone()
        return int(number)

    def labels(self) -> list[Label]:
        """Return every label that was ever set, in order."""
        with self._translated():
            rows = self._log.execute(f"{SELECT} ORDER BY labels.number").fetchall()
        return [Label._make(row) for row in rows]

    def current_labels(self) -> dict[str, str | None]:
        """Return the current label of each image by digest, sorted."""
        current = {each.image: each.label for each in self.labels() if each.withdrawn_by is None}
        return dict(sorted(current.items()))

    def queued(self) -> list[dict[str, Any]]:
        """Return the images to label next, which the teacher orders; none before it did."""
        labels = self.current_labels()
        try:
            images = json.loads(self.queue.read_bytes())
            return [each for each in images if str(each["image"]) not in labels]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CollectionError(
                f"{self.queue}: {error}; expected the file of a teacher: remove it"
            ) from error

    def knows(self, image: str) -> bool:
        """Return whether an image has a label, is stored, or is queued."""
        return (
            any(each.image == image for each in self.labels())
            or any(each.digest == image for each in unlabelled_images(self.unlabelled))
            or any(each["image"] == image for each in self.queued())
        )

    def _require_room(self, size_bytes: int) -> None:
        stored = sum(each.stat().st_size for each in self.images.iterdir())
        if stored + size_bytes > MAX_BYTES:
            raise CollectionError(
                f"an image of {size_bytes:,} bytes beside {stored:,} in {self.images}; expected at "
                f"most {MAX_BYTES:,}: export the labels, and train on the exported folder"
            )

    def _current(self, image: str) -> Label | None:
        sql = f"{SELECT} {IS_CURRENT} AND labels.image = ? ORDER BY labels.number DESC LIMIT 1"
        row = self._log.execute(sql, (image,)).fetchone()
        return row and Label._make(row)

    def _names(self) -> set[str]:
        rows = self._log.execute(f"SELECT DISTINCT labels.label {FROM} {IS_CURRENT}")
        return {name for (name,) in rows if name is not None}

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing; another process that writes is waited for."""
        with self._translated():
            self._log.execute("BEGIN IMMEDIATE")
            with self._log:
                yield self._log

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CollectionError(
                f"{self._path}: {error}; expected a log of labels that can be written: free the "
                f"disk, end the program that holds it, or restore it from a copy"
            ) from error


def _checked(label: str, known: set[str], *, is_new: bool) -> str:
    """Return a label in Unicode's normal form; raise ``CollectionError`` if it cannot be one."""
    name = unicodedata.normalize("NFC", label).strip()
    if not 0 < len(name) <= MAX_LABEL or not name.isprintable():
        raise CollectionError(
            f"label {label[:80]!r} of {len(label):,} characters: expected 1 to {MAX_LABEL} "
            f"that can be printed"
        )
    if name in known:
        return name
    if len(known) >= MAX_CLASSES:
        raise CollectionError(f"label {name!r}: expected one of the {len(known):,} classes")
    plain = {each.casefold(): each for each in known}
    # Classes that differ only in case cannot be folders side by side on every file system.
    cutoff = 1.0 if is_new else SIMILAR
    if close := get_close_matches(name.casefold(), plain, 1, cutoff):
        raise CollectionError(
            f"label {name!r} is no class; did you mean {plain[close[0]]!r}? To begin a class of "
            f"this name, set it as new"
        )
    return name


def _named(teacher: str) -> str:
    if not 0 < len(teacher) <= MAX_TEACHER or not teacher.isprintable():
        raise CollectionError(
            f"teacher {teacher[:80]!r}: expected a name of 1 to {MAX_TEACHER} characters"
        )
    return teacher
