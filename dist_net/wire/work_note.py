"""The last `Work` that a server gave a worker, as a note in memory that they share.

One writes while the other reads, and neither waits: a checksum tells what is only half written.
"""

import struct
import zlib

from dist_net.wire.messages import Work
from dist_net.wire.segment import NOTE_BYTES

# All but the weights, which lie in shared memory themselves.
_FIELDS = struct.Struct(f"<{len(Work._fields) - 1}q")
_CHECKSUM = struct.Struct("<I")
_UNUSED = bytes(NOTE_BYTES - _FIELDS.size - _CHECKSUM.size)


def noted(work: Work) -> bytes:
    """The note of it, of ``NOTE_BYTES`` bytes."""
    fields = _FIELDS.pack(*work[:-1])
    return fields + _CHECKSUM.pack(zlib.crc32(fields)) + _UNUSED


def work_in(note: bytes) -> Work | None:
    """What is noted there; None: nothing, or it is being written just now."""
    (checksum,) = _CHECKSUM.unpack_from(note, _FIELDS.size)
    if zlib.crc32(note[: _FIELDS.size]) != checksum:
        return None
    return Work._make((*_FIELDS.unpack_from(note), None))
