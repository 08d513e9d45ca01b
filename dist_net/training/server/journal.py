"""The file of a run's journal: read whole, read from its end, and appended to.

``journal_records`` defines its content.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from dist_net.errors import FileWriteError, JournalDamagedError, JournalMismatchError, SettingError
from dist_net.ground.files import HOST_DISK, Disk
from dist_net.training.server.journal_records import (
    ANOTHER_RUN,
    BLOCK_BYTES,
    Applied,
    Journal,
    Started,
    WorkersCounted,
    decode_journal,
    decode_record,
    encode_header,
    encode_record,
    identity_in,
)

MAX_UNWRITTEN_BYTES = 2**26  # a million results
CHUNK_BYTES = 2**20  # read at a time
ALWAYS, NEVER = "always", "never"
UNUSABLE = JournalMismatchError, JournalDamagedError


def read_journal(path: Path, disk: Disk = HOST_DISK) -> Journal:
    """Read a whole journal; raise as ``decode_journal``, and JournalMismatchError if unreadable."""
    with _errors_of(path):
        return decode_journal(disk.read(path))


class JournalTail(NamedTuple):
    """The end of a journal, after a checkpoint's version, which ends at ``kept_bytes``.

    Later records, up to ``last_version``, applied ``samples``. ``counted``: the newest counters.
    """

    kept_bytes: int
    samples: int
    last_version: int
    counted: WorkersCounted | None


def read_tail(path: Path, identity: bytes, version: int, disk: Disk = HOST_DISK) -> JournalTail:
    """Read only a journal's header and, from the end, its records back to ``version``.

    Raise one of ``UNUSABLE`` for a journal that cannot be continued from that version.
    """
    with _errors_of(path):
        beginning = disk.read(path, 0, 2 * BLOCK_BYTES)
        if identity_in(beginning[:BLOCK_BYTES]) != identity:
            raise JournalMismatchError(ANOTHER_RUN)
        first_version = decode_record(beginning[BLOCK_BYTES:]).version
        if first_version > version:
            raise JournalMismatchError(
                f"the journal begins at version {first_version}, expected at most {version}"
            )
        kept_bytes, samples, last_version, together = disk.size(path), 0, version, 0
        counted: WorkersCounted | None = None
        for offset, block in _blocks_from_the_end(path, kept_bytes, disk):
            try:
                record = decode_record(block)
            except JournalDamagedError:  # torn when its host failed: ignore all records after it
                kept_bytes, samples, last_version, counted = offset, 0, version, None
                continue
            if isinstance(record, WorkersCounted):
                counted = counted or record
            if not isinstance(record, Applied | Started):  # of any earlier version
                continue
            if record.version == version:
                together += 1
                if isinstance(record, Applied) and together < record.together:
                    continue  # a result applied with it may be damaged
                return JournalTail(kept_bytes, samples, last_version, counted)
            if record.version < version:
                break
            kept_bytes, last_version = offset, max(last_version, record.version)
            samples += record.steps.samples if isinstance(record, Applied) else 0
        raise JournalMismatchError(f"version {version} is not in the journal, or is damaged")


def _blocks_from_the_end(path: Path, size: int, disk: Disk) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the bytes of each record, the last one first."""
    for start in reversed(range(BLOCK_BYTES, size, CHUNK_BYTES)):
        content = disk.read(path, start, CHUNK_BYTES)
        for offset in reversed(range(0, len(content), BLOCK_BYTES)):
            yield start + offset, content[offset : offset + BLOCK_BYTES]


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalMismatchError(
            f"cannot read the journal {path}: {error.strerror}; expected the journal of a "
            f"training run"
        ) from error
    except UNUSABLE as error:
        error.args = (f"{path}: {error}",)
        raise


def put_aside(path: Path, disk: Disk = HOST_DISK) -> Path:
    """Rename a journal to the first free ``journal-N``, and return that. Raise FileWriteError."""
    names = (path.with_name(f"{path.name}-{number}") for number in count(1))
    kept = next(each for each in names if not disk.exists(each))
    try:
        disk.rename(path, kept)
    except OSError as error:
        raise FileWriteError(
            f"the journal {path} cannot be renamed to {kept}: {error.strerror}; expected a "
            f"writable directory"
        ) from error
    return kept


def sync_interval_s(sync: str) -> float | None:
    """Return the interval of journal syncs in seconds: 0 after each record, None for never.

    ``sync`` is "always", "never" or a number of seconds. Raise ``SettingError`` for other text.
    """
    if sync in (ALWAYS, NEVER):
        return 0.0 if sync == ALWAYS else None
    try:
        seconds = float(sync)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingError(
            f"sync={sync!r}: expected {ALWAYS!r}, {NEVER!r} or a number of seconds above 0"
        )
    return seconds


class JournalLag(NamedTuple):
    """The bytes of the journal that are not on the disk, and the age of the oldest.

    ``unwritten_bytes`` of them are only in this process's memory, because of ``error``.
    """

    lag_bytes: int = 0
    lag_s: float = 0.0
    unwritten_bytes: int = 0
    error: str | None = None


@dataclass
class OnDisk:
    """The disk at the last look. ``checkpoint_error``: of a newer checkpoint."""

    checkpoint_version: int | None = None
    checkpoint_error: str | None = None
    journal: JournalLag = field(default_factory=JournalLag)


class JournalFile:
    """A journal opened for appending, by the server that started last.

    Appended records survive the death of this process; if the host fails, unsynced records may be
    lost. Records that cannot be written, on a full disk, are retried with the next record.
    """

    def __init__(
        self,
        path: Path,
        kept_bytes: int,
        identity: bytes,
        started: Started,
        sync_interval_s: float | None = None,
        *,
        now: float,
        disk: Disk = HOST_DISK,
    ) -> None:
        """Truncate the file to ``kept_bytes``, 0 for a new journal, and append the start.

        Raise ``FileWriteError`` if it cannot be opened, or if it is new and not written.
        """
        self.term = started.term
        self.sync_interval_s = sync_interval_s
        self._path = path
        self._unwritten = bytearray()
        self._write_error: str | None = None
        self._sync_error: str | None = None
        self._written_bytes = self._synced_bytes = 0
        self._oldest_unsynced_s = now
        self._appended_since_sync_s: float | None = None  # when first, since the last one began
        try:
            self._file = disk.append_to(path, kept_bytes)
        except OSError as error:
            raise FileWriteError(self._why(error)) from error
        header = b"" if kept_bytes else encode_header(identity)
        self.append(header + encode_record(started), now)
        if self.error is not None and not kept_bytes:
            self.close()
            raise FileWriteError(self.error)

    @property
    def error(self) -> str | None:
        """The reason why the last write or sync failed; None if both succeeded."""
        return self._write_error or self._sync_error

    @property
    def is_given_up(self) -> bool:
        """Whether more than ``MAX_UNWRITTEN_BYTES`` could not be written."""
        return len(self._unwritten) > MAX_UNWRITTEN_BYTES

    def lag(self, now: float) -> JournalLag:
        unsynced_bytes = self._unsynced_bytes
        unsynced_s = now - self._oldest_unsynced_s if unsynced_bytes else 0.0
        return JournalLag(unsynced_bytes, unsynced_s, len(self._unwritten), self.error)

    @property
    def _unsynced_bytes(self) -> int:
        return self._written_bytes + len(self._unwritten) - self._synced_bytes

    def append(self, content: bytes = b"", now: float = 0.0) -> None:
        """Append encoded records in one write, after records that are still unwritten."""
        if content:
            if not self._unsynced_bytes:
                self._oldest_unsynced_s = now
            if self._appended_since_sync_s is None:
                self._appended_since_sync_s = now
        self._unwritten += content
        try:
            while self._unwritten:
                written = self._file.write(self._unwritten)
                del self._unwritten[:written]
                self._written_bytes += written
            self._write_error = None
        except OSError as error:
            self._write_error = self._why(error)
        if content and self.sync_interval_s == 0:
            with suppress(FileWriteError):  # kept in ``error``
                self.sync()

    def sync(self) -> None:
        """Return once all appended records are on the disk; may be called from another thread.

        Raise ``FileWriteError``, also if records could not be written before.
        """
        # In this order, records appended meanwhile count as unsynced.
        self._appended_since_sync_s = None
        written_bytes, has_unwritten = self._written_bytes, bool(self._unwritten)
        try:
            self._file.sync()
        except OSError as error:
            self._sync_error = self._why(error)
            raise FileWriteError(self._sync_error) from error
        self._sync_error = None
        self._synced_bytes = max(self._synced_bytes, written_bytes)  # two syncs may overlap
        if self._appended_since_sync_s is not None and not has_unwritten:
            self._oldest_unsynced_s = self._appended_since_sync_s
        if self._write_error is not None:
            raise FileWriteError(self._write_error)

    def close(self) -> None:
        self._file.close()

    def _why(self, error: OSError) -> str:
        return (
            f"the journal {self._path} cannot be written: {error.strerror}; expected a writable "
            f"directory on a disk with free space"
        )
