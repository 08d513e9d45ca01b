"""A run's metrics for TensorBoard: event files with a curve for each number.

An event file is a TFRecord file. A record consists of its length (uint64), the length's checksum,
the content and the content's checksum, little-endian. A checksum is a CRC-32C (RFC 3720), masked as
TFRecord defines. The content is an ``Event`` message of TensorFlow's event.proto with four fields.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

REVERSED_POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""


class EventFiles:
    """New files in ``directory``/train and ``directory``/test; earlier files are removed.

    Raise OSError if they cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._files = {kind: directory / kind / name for kind in ("train", "test")}
        version = _record(_wall_time() + _field(3, LENGTH_DELIMITED, b"brain.Event:2"))
        for file in self._files.values():
            file.parent.mkdir(parents=True, exist_ok=True)
            for earlier in file.parent.glob("events.out.tfevents.*"):
                earlier.unlink()
            file.write_bytes(version)

    def appended(self, record: Mapping[str, Any]) -> tuple[Path, bytes]:
        """Return the file and the bytes to append to it for a record of metrics.jsonl.

        TensorBoard's step is the record's number of samples.
        """
        content = _wall_time() + _field(2, VARINT, _varint(record["samples"]))
        summary = b""
        for name, number in record.items():
            if name not in ("kind", "samples") and number is not None:
                value = _field(1, LENGTH_DELIMITED, name.encode())
                value += _field(2, FIXED32, struct.pack("<f", number))
                summary += _field(1, LENGTH_DELIMITED, value)
        content += _field(5, LENGTH_DELIMITED, summary)
        return self._files[record["kind"]], _record(content)


def _wall_time() -> bytes:
    return _field(1, FIXED64, struct.pack("<d", time.time()))


def _field(number: int, kind: int, content: bytes) -> bytes:
    length = _varint(len(content)) if kind == LENGTH_DELIMITED else b""
    return _varint(number << 3 | kind) + length + content


def _varint(number: int) -> bytes:
    """Encode seven bits per byte, lowest first; all bytes but the last have the eighth bit set."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked_checksum(length) + content + _masked_checksum(content)


def _masked_checksum(content: bytes) -> bytes:
    checksum = crc32c(content)
    rotated = checksum >> 15 | checksum << 17
    return struct.pack("<I", rotated + MASK_DELTA & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of ``content`` (RFC 3720)."""
    table, checksum = _crc_table(), 0xFFFFFFFF
    for byte in content:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF


@cache
def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [each >> 1 ^ REVERSED_POLYNOMIAL * (each & 1) for each in table]
    return table
