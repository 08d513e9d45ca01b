"""A journal holds what was applied, and is read up to where it is as it was written."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from desk import opened_journal
from dist_net.errors import (
    FileWriteError,
    JournalDamagedError,
    JournalMismatchError,
    SettingError,
)
from dist_net.training.server import journal as module
from dist_net.training.server import journal_records
from dist_net.training.server.consistency import WHOLE as WHOLE_STEP
from dist_net.training.server.consistency import OuterStep
from dist_net.training.server.journal import (
    JournalFile,
    JournalLag,
    read_journal,
    read_tail,
    sync_interval_s,
)
from dist_net.training.server.journal_records import (
    BLOCK_BYTES,
    Applied,
    Checkpointed,
    Computing,
    Journal,
    JournalRecord,
    Started,
    WorkersCounted,
    decode_journal,
    decode_record,
    encode_header,
    encode_record,
    run_identity,
    sha256_of,
)
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.lease_steps import LeaseSteps
from naming import naming
from simulation.disk import VirtualDisk

IDENTITY = run_identity("release 1; recipe 2; data 3", 0)
STARTED = Started(0, 2**63 - 1, 4, 32, 10, 0.1)
FIRST = Checkpointed(0, bytes(range(32)))
APPLIED = Applied(1, 2**48 + 1, LeaseSteps(0, 0, 32, 0, 32, 32), 0)
OUTER = OuterStep(0.75, 0.875, 1.0)
LATE = LeaseSteps(2**32 - 1, 2**31, 2**31 + 32, 2**63, 96, 32)
PAIR = (
    Applied(2, 7, LATE._replace(parts=32), 1, True, 2, OUTER),
    Applied(2, 8, LATE._replace(start=2**31 + 32, stop=2**31 + 33), 0, False, 2, OUTER),
)
ROUND = tuple(
    Applied(3, 7, LeaseSteps(0, 32 * n, 32 * n + 32, 64, 96, 32, (1, 32, 2)[n]), 2, together=3)
    for n in range(3)
)
AGAIN = Started(2, 0x0123456789ABCDEF, 1, 2**32 - 1, 2**32 - 1, 0.003, 0.5, 0.999)
RECORDS = (STARTED, FIRST, APPLIED, *PAIR, AGAIN, Checkpointed(2, bytes(32)))


def encoded(*records: JournalRecord) -> bytes:
    return encode_header(IDENTITY) + b"".join(map(encode_record, records))


WHOLE = encoded(*RECORDS)
FLIPPED = WHOLE[: 3 * BLOCK_BYTES + 20] + bytes([WHOLE[3 * BLOCK_BYTES + 20] ^ 4]) + WHOLE[213:]


def test_what_was_written_is_read() -> None:
    journal = decode_journal(WHOLE)
    assert tuple(journal.records()) == RECORDS
    assert list(journal.starts()) == [STARTED, AGAIN]
    assert list(journal.updates()) == [STARTED, (APPLIED,), PAIR, AGAIN]
    assert journal.checkpoints == {0: bytes(range(32)), 2: bytes(32)}
    assert (journal.identity, journal.fault) == (IDENTITY, None)
    assert (journal.first_version, journal.version) == (0, 2)


def test_the_results_of_a_round_make_one_version() -> None:
    whole = encoded(*RECORDS, *ROUND, Checkpointed(3, bytes(32)))
    journal = decode_journal(whole)
    assert (journal.version, journal.fault) == (3, None)
    assert list(journal.updates())[-1] == ROUND
    assert decode_journal(whole[: -2 * BLOCK_BYTES]).version == 2
    for second in (ROUND[1]._replace(version=4), ROUND[1]._replace(together=1)):
        assert decode_journal(encoded(*RECORDS, ROUND[0], second)).version == 2


@pytest.mark.parametrize("outer", [WHOLE_STEP, OUTER, OuterStep(0.25, 0.0, 0.25)])
def test_the_outer_step_is_recorded(outer: OuterStep) -> None:
    assert decode_record(encode_record(APPLIED._replace(outer=outer))) == APPLIED._replace(
        outer=outer
    )


@pytest.mark.parametrize("workers", range(1, 65))
def test_the_share_of_an_asynchronous_result_has_the_same_float32_in_a_replay(
    workers: int,
) -> None:
    outer = OuterStep(1 / workers, 0.0, 1 / workers)
    record = decode_record(encode_record(APPLIED._replace(outer=outer)))
    assert isinstance(record, Applied)
    assert [np.float32(each) for each in record.outer] == [np.float32(each) for each in outer]


def test_the_kernels_of_workers_are_recorded_between_results() -> None:
    haswell = Computing(2, 2**56 - 1, "openblas 0.3.31 (Haswell)")
    unknown = Computing(2, 1, "é" * 25)  # whose name is cut within a character
    journal = decode_journal(encoded(*RECORDS, haswell, unknown, *ROUND))
    assert journal.kernels == {2**56 - 1: "openblas 0.3.31 (Haswell)", 1: "é" * 20}
    assert (journal.version, journal.fault) == (3, None)
    within = decode_journal(encoded(*RECORDS, ROUND[0], haswell._replace(version=3)))
    assert within.version == 2


def test_a_record_is_64_bytes() -> None:
    assert {len(encode_record(record)) for record in RECORDS} == {64}
    assert len(encode_header(IDENTITY)) == BLOCK_BYTES == 64


def test_a_journal_that_is_torn_anywhere_is_read_up_to_there() -> None:
    for size in range(2 * BLOCK_BYTES):
        with pytest.raises((JournalMismatchError, JournalDamagedError)):
            decode_journal(WHOLE[:size])
    for size in range(2 * BLOCK_BYTES, len(WHOLE)):
        journal = decode_journal(WHOLE[:size])
        whole, torn_bytes = size // BLOCK_BYTES - 1, size % BLOCK_BYTES
        # Of results that were applied together, either all are there or none.
        assert tuple(journal.records()) == RECORDS[: 3 if whole == 4 else whole]
        fault = None
        if torn_bytes:
            cut = f"it is cut short after {torn_bytes} of 64 bytes"
            fault = f"record {whole + 1} is damaged: {cut}"
        elif whole == 4:
            fault = "record 5 is missing: it was applied with the one before"
        assert journal.fault == fault


def test_a_flipped_bit_is_noticed_and_the_journal_is_read_up_to_there() -> None:
    for offset in range(len(WHOLE)):
        damaged = bytearray(WHOLE)
        damaged[offset] ^= 1 << offset % 8
        if offset < 2 * BLOCK_BYTES:
            with pytest.raises((JournalMismatchError, JournalDamagedError)):
                decode_journal(bytes(damaged))
            continue
        number = offset // BLOCK_BYTES
        journal = decode_journal(bytes(damaged))
        assert journal.fault == (
            f"record {number} is damaged: its checksum does not match its content"
        )
        assert tuple(journal.records()) == RECORDS[: 3 if number == 5 else number - 1]


@pytest.mark.parametrize(
    "record",
    [
        APPLIED._replace(version=2),
        APPLIED._replace(version=4, base_version=2),
        APPLIED._replace(version=3, base_version=3),
        APPLIED._replace(version=3, steps=APPLIED.steps._replace(stop=0)),
        APPLIED._replace(version=3, steps=APPLIED.steps._replace(pace=0)),
        APPLIED._replace(version=3, together=0),
        APPLIED._replace(version=3, outer=OuterStep(float("nan"), 0.0, 1.0)),
        APPLIED._replace(version=3, outer=OuterStep(1.0, -1.0, 1.0)),
        APPLIED._replace(version=3, outer=OuterStep(1.0, float("inf"), 1.0)),
        AGAIN._replace(version=1),
        Checkpointed(3, bytes(32)),
    ],
)
def test_a_record_that_cannot_be_there_ends_the_journal(record: JournalRecord) -> None:
    journal = decode_journal(encoded(*RECORDS, record))
    assert journal.version == 2
    assert journal.fault is not None
    assert journal.fault.startswith("record 8 is damaged: ")


def test_nothing_stands_between_the_results_of_a_round() -> None:
    one, other = PAIR
    for between in (FIRST, AGAIN, other._replace(together=1), other._replace(base_version=2)):
        journal = decode_journal(encoded(STARTED, APPLIED, one, between))
        assert journal.version == 1
        assert str(journal.fault).startswith("record 4 is damaged: ")


def test_a_journal_begins_with_a_start() -> None:
    with pytest.raises(JournalDamagedError, match=naming("record 1")):
        decode_journal(encoded(APPLIED))


def test_what_was_never_a_journal_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(JournalMismatchError, match=naming(path, "No such file")):
        read_journal(path)
    path.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(JournalMismatchError, match=naming(path, r"b'PK\x03\x04")):
        read_journal(path)


def test_a_later_format_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_records, "FORMAT_VERSION", 3)
    later = encoded(STARTED)
    monkeypatch.undo()
    with pytest.raises(JournalMismatchError, match=naming("format 3", 2)):
        decode_journal(later)


def test_identity_tells_recipes_and_seeds() -> None:
    assert len({run_identity(digest, seed) for digest in "ab" for seed in (0, 1)}) == 4
    decode_journal(WHOLE).require_identity(IDENTITY)
    with pytest.raises(JournalMismatchError, match=naming("release", "recipe", "seed")):
        decode_journal(WHOLE).require_identity(run_identity("a", 0))


def test_sync_is_always_never_or_a_number_of_seconds() -> None:
    assert [sync_interval_s(sync) for sync in ("always", "never", "2.5")] == [0.0, None, 2.5]
    for sync in ("0", "-1", "nan", "inf", "often"):
        with pytest.raises(SettingError, match=naming(f"sync='{sync}'", "'always'", "'never'")):
            sync_interval_s(sync)


def test_what_a_full_disk_refuses_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = JournalFile(path, 0, IDENTITY, STARTED, now=0.0)

    def write_a_part(descriptor: int, content: bytes) -> int:
        if path.stat().st_size >= 3 * BLOCK_BYTES - 10:
            raise OSError(28, "No space left on device")
        return os.pwrite(descriptor, content[:54], 0)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_a_part)
        journal.append(encode_record(APPLIED))
        assert journal.error is not None
        assert "cannot be written: No space left on device; expected" in journal.error
        journal.append(encode_record(PAIR[0]) + encode_record(PAIR[1]))
        assert not journal.is_given_up
        patch.setattr(module, "MAX_UNWRITTEN_BYTES", 64)
        assert journal.is_given_up
    journal.append()
    assert journal.error is None
    journal.close()
    assert tuple(read_journal(path).records()) == (STARTED, APPLIED, *PAIR)


def test_a_journal_that_lacks_what_was_refused_is_not_synced_until_that_is_written() -> None:
    """Else a checkpoint would be newer than the journal, and no server would go on from it."""
    disk = VirtualDisk(np.random.default_rng(0))
    journal = JournalFile(Path("journal"), 0, IDENTITY, STARTED, now=0.0, disk=disk)
    disk.failure = errno.EROFS
    journal.append(encode_record(APPLIED))
    disk.failure = None
    with pytest.raises(FileWriteError, match=naming("journal", "Read-only file system")):
        journal.sync()
    journal.append()
    journal.sync()
    assert tuple(read_journal(Path("journal"), disk).records()) == (STARTED, APPLIED)


def test_the_lag_is_what_the_disk_may_not_have_and_since_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalFile(tmp_path / "journal", 0, IDENTITY, STARTED, now=1.0)
    assert journal.lag(3.0) == JournalLag(2 * BLOCK_BYTES, 2.0)
    journal.sync()
    assert journal.lag(4.0) == JournalLag()
    journal.append(encode_record(APPLIED), 5.0)
    journal.append(encode_record(PAIR[0]), 6.0)
    assert journal.lag(7.5) == JournalLag(2 * BLOCK_BYTES, 2.5)

    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    def append_meanwhile(_: int) -> None:
        journal.append(encode_record(PAIR[1]), 8.0)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileWriteError, match=naming("journal", "Input/output error")):
        journal.sync()
    lag = journal.lag(8.0)
    assert (lag.lag_bytes, lag.lag_s) == (2 * BLOCK_BYTES, 3.0)
    assert lag.error is not None
    monkeypatch.setattr(os, "fsync", append_meanwhile)
    journal.sync()
    assert journal.lag(9.0) == JournalLag(BLOCK_BYTES, 1.0)
    journal.close()


class Interrupted(bytearray):
    """Content whose length another thread reads just before this one appends to it."""

    def __init__(self, append: Callable[[], None]) -> None:
        super().__init__()
        self._append: Callable[[], None] | None = append

    def __len__(self) -> int:
        length = super().__len__()
        append, self._append = self._append, None
        if append is not None:
            append()
        return length


def test_records_that_are_refused_during_a_sync_are_not_on_the_disk() -> None:
    disk = VirtualDisk(np.random.default_rng(0))
    journal = JournalFile(Path("journal"), 0, IDENTITY, STARTED, now=0.0, disk=disk)

    def refuse() -> None:
        disk.failure = errno.EROFS
        journal.append(encode_record(APPLIED), 1.0)
        disk.failure = None

    journal._unwritten = Interrupted(refuse)
    with pytest.raises(FileWriteError, match="Read-only file system"):
        journal.sync()
    lag = journal.lag(3.0)
    assert (lag.lag_bytes, lag.unwritten_bytes) == (BLOCK_BYTES, BLOCK_BYTES)
    assert lag.lag_s == 2.0


def test_a_journal_that_cannot_be_begun_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match=naming("no/journal", "No such file or directory")):
        JournalFile(tmp_path / "no" / "journal", 0, IDENTITY, STARTED, now=0.0)


def test_always_syncs_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "journal"
    for interval_s, times in ((None, 0), (5.0, 0), (0.0, 2)):
        journal = JournalFile(path, 0, IDENTITY, STARTED, interval_s, now=0.0)
        journal.append(encode_record(APPLIED))
        journal.append()
        journal.close()
        assert len(synced) == times


SETTINGS = RunSettings(
    "digits", "release 1; recipe 2; data 3", (("weight", (4,)),), samples=64, epochs=1, batch_size=8
)


def resumed(settings: RunSettings, version: int) -> RunState:
    """A run that went on from a checkpoint of this version."""
    run = RunState(SETTINGS, np.zeros(4, np.float32))
    checkpoint = replace(run.checkpoint(), version=version)
    return RunState.resumed(settings, checkpoint)


def go_on(path: Path, version: int, settings: RunSettings = SETTINGS) -> Journal:
    """The journal after a server has gone on from that version."""
    with opened_journal(path, resumed(settings, version)):
        pass
    return read_journal(path)


@pytest.mark.parametrize("torn", [b"", b"torn", bytes(100)])
def test_what_was_applied_after_the_checkpoint_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(WHOLE + torn)
    run = resumed(SETTINGS, 1)
    with opened_journal(path, run):
        pass
    if not torn:
        assert run.metrics.samples_done_again == 33  # of the round after the checkpoint
        assert "33 samples are done again" in run.resume_warnings[0]
    journal = read_journal(path)
    *kept, started = journal.records()
    assert tuple(kept) == (STARTED, FIRST, APPLIED)
    assert isinstance(started, Started)
    assert started.version == 1


def test_what_is_behind_a_damaged_record_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(WHOLE[:-140] + bytes(140))  # all behind the first of the two
    assert read_tail(path, IDENTITY, 1) == (len(encoded(*RECORDS[:3])), 32, 2, None)
    path.write_bytes(WHOLE[:-30] + bytes(30))
    assert read_tail(path, IDENTITY, 2) == (len(encoded(*RECORDS[:6])), 0, 2, None)


def test_the_newest_counters_of_workers_are_read_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    counted = [WorkersCounted(2, 3, lost) for lost in (0, 1, 2)]
    path.write_bytes(encoded(*RECORDS, *counted))
    assert tuple(read_journal(path).records())[-3:] == tuple(counted)
    assert read_tail(path, IDENTITY, 2).counted == counted[-1]
    assert read_tail(path, IDENTITY, 1) == (len(encoded(*RECORDS[:3])), 33, 2, counted[-1])
    path.write_bytes(encoded(*RECORDS, *counted)[:-30])
    assert read_tail(path, IDENTITY, 2).counted == counted[1]


def test_a_server_goes_on_without_reading_the_records_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(APPLIED._replace(version=version) for version in range(1, 5001))
    path = tmp_path / "journal"
    path.write_bytes(encoded(STARTED, *many, Checkpointed(4990, bytes(32))))
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * BLOCK_BYTES)
    decoded: list[JournalRecord] = []

    def note(block: bytes) -> JournalRecord:
        decoded.append(decode_record(block))
        return decoded[-1]

    monkeypatch.setattr(module, "decode_record", note)
    assert read_tail(path, IDENTITY, 4990) == (64 * 4992, 320, 5000, None)
    assert len(decoded) == 13
    assert go_on(path, 4990).version == 4990


def test_each_start_has_a_term_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(WHOLE)
    go_on(path, 2)
    journal = go_on(path, 2)
    assert len({started.term for started in journal.starts()}) == 4


def test_a_run_without_a_journal_begins_one(tmp_path: Path) -> None:
    assert go_on(tmp_path / "journal", 7).first_version == 7


UPGRADED = replace(SETTINGS, recipe_digest="release 2; recipe 2; data 3")


@pytest.mark.parametrize(
    ("settings", "version", "content", "reason"),
    [
        (UPGRADED, 1, WHOLE, "of another run"),
        (SETTINGS, 3, WHOLE, "version 3 is not in the journal"),
        (SETTINGS, 2, WHOLE[:-140], "version 2 is not in the journal"),
        (SETTINGS, 2, FLIPPED[:-140], "version 2 is not in the journal"),
        (SETTINGS, 1, encoded(AGAIN), "the journal begins at version 2"),
        (SETTINGS, 1, b"something else", "is no journal"),
        (SETTINGS, 1, encode_header(IDENTITY), "cut short"),
    ],
    ids=["upgrade", "newer", "cut short", "flipped bit", "older", "no journal", "header alone"],
)
def test_a_journal_that_cannot_be_continued_is_kept_and_a_new_one_begins(
    tmp_path: Path, settings: RunSettings, version: int, content: bytes, reason: str
) -> None:
    path = tmp_path / "journal"
    for number in (1, 2):
        path.write_bytes(content)
        run = resumed(settings, version)
        with opened_journal(path, run):
            pass
        kept = tmp_path / f"journal-{number}"
        assert kept.read_bytes() == content
        assert str(kept) in run.resume_warnings[0]
        assert reason in run.resume_warnings[0]
        journal = read_journal(path)
        journal.require_identity(run_identity(settings.recipe_digest, 0))
        assert journal.first_version == journal.version == version


def test_digests_of_weights_are_those_of_their_bytes() -> None:
    assert sha256_of(np.zeros(4, np.float32)).hex().startswith("374708ff")
