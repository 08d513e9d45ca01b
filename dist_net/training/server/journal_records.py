"""The format of a run's journal: the applied results in order, so that a run can be replayed. Pure.

Little-endian blocks of 64 bytes, each ending in a CRC-32 of the rest: a header, then five kinds of
records. An ``Applied`` is written before its push is acknowledged. The journal contains no arrays:
samples, seed and the state before determine the results, but for the rounding of a worker's
kernels, which ``Computing`` names.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dist_net.errors import JournalDamagedError, JournalMismatchError
from dist_net.ground.vector import Vector
from dist_net.training.server.consistency import WHOLE, OuterStep
from dist_net.wire.lease_steps import LeaseSteps

BLOCK_BYTES = 64
FORMAT_VERSION = 2
ANOTHER_RUN = (
    "the journal is of another run: expected the same release of dist_net, recipe, training data "
    "and seed"
)
_MAGIC = b"dist_net log"
_HEADER = struct.Struct("<12sI32s12x")
_APPLIED = struct.Struct("<BBHQQIIIIQIIff")
_STARTED = struct.Struct("<B3xQQdddIII4x")
_CHECKPOINTED = struct.Struct("<B3xQ32s16x")
_COMPUTING = struct.Struct("<B3xQQ40s")
_WORKERS_COUNTED = struct.Struct("<B3xQQQ32x")
_CHECKSUM = struct.Struct("<I")


class Applied(NamedTuple):
    """The result of a lease, which made the state ``version`` with ``together`` - 1 others.

    Its ``steps`` began from the state ``base_version``. With ``is_packed``, base and result
    travelled as frames, and were rounded. ``outer`` applied the results' mean.
    """

    version: int
    worker_id: int
    steps: LeaseSteps
    base_version: int
    is_packed: bool = False
    together: int = 1
    outer: OuterStep = WHOLE


class Started(NamedTuple):
    """The start of a server at ``version``, with which ``term`` begins; see ``next_term``.

    ``threads``: of each worker on the server's host. ``CHANGEABLE`` settings affect the weights,
    and may change when a run is resumed.
    """

    version: int
    term: int
    threads: int
    batch_size: int
    epochs: int
    learning_rate: float
    clip_norm: float = 0.0
    average_decay: float = 0.0


CHANGEABLE = Started._fields[3:]


class Checkpointed(NamedTuple):
    """The SHA-256 of the weights of ``version``. Records of later versions may precede it."""

    version: int
    weights_sha256: bytes


class Computing(NamedTuple):
    """A worker with these ``kernels`` may have computed results after ``version``.

    ``kernels``: see ``Equipment``; ``blas``: the beginning of its BLAS library's name.
    """

    version: int
    kernels: int
    blas: str


class WorkersCounted(NamedTuple):
    """The numbers of workers that had joined and that were lost, when one of them changed."""

    version: int
    joined: int
    lost: int


JournalRecord = Applied | Started | Checkpointed | Computing | WorkersCounted


def run_identity(recipe_digest: str, seed: int) -> bytes:
    """Return the digest of a run's recipe, dataset, release and seed."""
    return hashlib.sha256(f"{recipe_digest}; seed {seed}".encode()).digest()


def sha256_of(weights: Vector) -> bytes:
    return hashlib.sha256(weights.data).digest()


def encode_header(identity: bytes) -> bytes:
    return _with_checksum(_HEADER.pack(_MAGIC, FORMAT_VERSION, identity))


def encode_record(record: JournalRecord) -> bytes:
    match record:
        case Applied():
            rate, momentum, rate_of_others = record.outer
            epoch, start, stop, *how, parts = record.steps
            bits = record.is_packed + 2 * (rate_of_others == 1) + 4 * (parts - 1)
            staleness = record.version - record.base_version
            numbers = record.version, record.worker_id, staleness, start, stop - start, epoch, *how
            content = _APPLIED.pack(1, bits, record.together, *numbers, rate, momentum)
        case Started():
            version, term, threads, batch_size, epochs, *limits = record
            content = _STARTED.pack(2, version, term, *limits, threads, batch_size, epochs)
        case Checkpointed():
            content = _CHECKPOINTED.pack(3, *record)
        case Computing(version, kernels, blas):
            content = _COMPUTING.pack(4, version, kernels, blas.encode()[:40])
        case WorkersCounted():
            content = _WORKERS_COUNTED.pack(5, *record)
    return _with_checksum(content)


def decode_record(block: bytes) -> JournalRecord:
    """Invert ``encode_record``. Raise ``JournalDamagedError`` for a damaged block."""
    content = _checked(block)
    match content[0]:
        case 1:
            _, bits, together, version, worker, staleness, *rest = _APPLIED.unpack(content)
            start, size, epoch, progress, pace, batch_size, rate, momentum = rest
            how = progress, pace, batch_size, 1 + (bits >> 2)
            steps = LeaseSteps(epoch, start, start + size, *how)
            outer = OuterStep(rate, momentum, 1.0 if bits & 2 else rate)
            base = version - staleness
            return Applied(version, worker, steps, base, bool(bits & 1), together, outer)
        case 2:
            _, version, term, *limits, threads, batch_size, epochs = _STARTED.unpack(content)
            return Started(version, term, threads, batch_size, epochs, *limits)
        case 3:
            return Checkpointed(*_CHECKPOINTED.unpack(content)[1:])
        case 4:
            _, version, kernels, blas = _COMPUTING.unpack(content)
            return Computing(version, kernels, blas.rstrip(b"\0").decode(errors="replace"))
        case 5:
            return WorkersCounted(*_WORKERS_COUNTED.unpack(content)[1:])
    raise JournalDamagedError(f"its kind is {content[0]}, expected 1 to 5")


def _with_checksum(content: bytes) -> bytes:
    return content + _CHECKSUM.pack(zlib.crc32(content))


def _checked(block: bytes) -> bytes:
    if len(block) < BLOCK_BYTES:
        raise JournalDamagedError(f"it is cut short after {len(block)} of {BLOCK_BYTES} bytes")
    content, checksum = block[: -_CHECKSUM.size], block[-_CHECKSUM.size :]
    if _CHECKSUM.pack(zlib.crc32(content)) != checksum:
        raise JournalDamagedError("its checksum does not match its content")
    return content


class _RecordOrder:
    """The order in which a server writes records."""

    def __init__(self) -> None:
        self.first_version = self.version = -1
        self.missing = 0  # records of the last version

    def take(self, record: JournalRecord) -> None:
        """Raise ``JournalDamagedError`` for a record that no server writes next."""
        if not self._allows(record):
            raise JournalDamagedError(
                f"{record} cannot follow version {self.version} of a journal that begins at "
                f"version {self.first_version}"
            )
        if isinstance(record, Applied):
            self.missing = (self.missing or record.together) - 1
            self.version = record.version
        elif self.version < 0:
            self.first_version = self.version = record.version

    def _allows(self, record: JournalRecord) -> bool:
        is_whole = not self.missing
        match record:
            case Applied():
                return (
                    record.version == self.version + is_whole
                    and 0 <= self.first_version <= record.base_version < record.version
                    and record.steps.start < record.steps.stop
                    and record.steps.pace > 0 < record.steps.batch_size
                    and record.together > self.missing
                    and all(0 <= each < math.inf for each in record.outer)
                )
            case Started():
                return is_whole and (self.version < 0 or record.version == self.version)
        return is_whole and 0 <= self.first_version <= record.version <= self.version


@dataclass(frozen=True, eq=False)
class Journal:
    """A journal up to its end, or up to the first damaged record, which ``fault`` describes.

    It covers ``first_version`` to ``version``. ``checkpoints`` maps versions to the SHA-256 of
    their weights, and ``kernels`` the workers' to their BLAS libraries.
    """

    identity: bytes
    first_version: int
    version: int
    checkpoints: dict[int, bytes]
    kernels: dict[int, str]
    content: bytes
    fault: str | None

    def records(self) -> Iterator[JournalRecord]:
        for offset in range(BLOCK_BYTES, len(self.content), BLOCK_BYTES):
            yield decode_record(self.content[offset : offset + BLOCK_BYTES])

    def starts(self) -> Iterator[Started]:
        return (record for record in self.records() if isinstance(record, Started))

    def updates(self) -> Iterator[Started | tuple[Applied, ...]]:
        """Yield every start, and the results applied together as one tuple."""
        together: list[Applied] = []
        for record in self.records():
            if isinstance(record, Started):
                yield record
            elif isinstance(record, Applied):
                together.append(record)
                if len(together) == record.together:
                    yield tuple(together)
                    together.clear()

    def require_identity(self, identity: bytes) -> None:
        """Raise ``JournalMismatchError`` for a journal of another run."""
        if self.identity != identity:
            raise JournalMismatchError(ANOTHER_RUN)

    def require_version(self, version: int) -> None:
        """Raise ``JournalMismatchError`` unless the journal covers ``version``."""
        if not self.first_version <= version <= self.version:
            fault = "" if self.fault is None else f": {self.fault}"
            raise JournalMismatchError(
                f"version {version} is not in the journal, which covers versions "
                f"{self.first_version} to {self.version}{fault}"
            )


def decode_journal(content: bytes) -> Journal:
    """Check a journal from its beginning, up to the first damaged record.

    Raise ``JournalMismatchError``, or ``JournalDamagedError`` without a header or a first record.
    """
    identity = identity_in(content[:BLOCK_BYTES])
    order = _RecordOrder()
    version, whole_bytes, fault = -1, BLOCK_BYTES, None
    checkpoints: dict[int, bytes] = {}
    kernels: dict[int, str] = {}
    for offset in range(BLOCK_BYTES, len(content), BLOCK_BYTES):
        try:
            record = decode_record(content[offset : offset + BLOCK_BYTES])
            order.take(record)
        except JournalDamagedError as error:
            fault = f"record {offset // BLOCK_BYTES} is damaged: {error}"
            break
        if isinstance(record, Checkpointed):
            checkpoints[record.version] = record.weights_sha256
        if isinstance(record, Computing):
            kernels[record.kernels] = record.blas
        if not order.missing:
            version, whole_bytes = order.version, offset + BLOCK_BYTES
    if fault is None and order.missing:
        number = len(content) // BLOCK_BYTES
        fault = f"record {number} is missing: it was applied with the one before"
    if version < 0:
        raise JournalDamagedError(
            f"the journal contains no record: {fault or 'it is cut short'}; expected at least the "
            f"start of a server"
        )
    versions = order.first_version, version
    return Journal(identity, *versions, checkpoints, kernels, content[:whole_bytes], fault)


def identity_in(block: bytes) -> bytes:
    if not block.startswith(_MAGIC):
        raise JournalMismatchError(
            f"a file that begins with {block[:12]!r} is no journal; expected the journal of a "
            f"training run"
        )
    try:
        _, format_version, identity = _HEADER.unpack(_checked(block))
    except JournalDamagedError as error:
        raise JournalDamagedError(f"the journal's header is damaged: {error}") from error
    if format_version != FORMAT_VERSION:
        raise JournalMismatchError(
            f"the journal has format {format_version}; expected {FORMAT_VERSION}. Another release "
            f"of dist_net wrote it: use that release"
        )
    return bytes(identity)
