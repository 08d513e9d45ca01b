"""The files of a run's metrics: metrics.jsonl and, for TensorBoard, event files.

An event file is a TFRecord file. A record consists of its length (uint64), the length's checksum,
the content and the content's checksum, little-endian. A checksum is a CRC-32C (RFC 3720), masked as
TFRecord defines. The content is an ``Event`` message of TensorFlow's event.proto with four fields.
"""

import json
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dist_net.errors import FileWriteError
from dist_net.nets.run_directory import RunDirectory

MAX_UNWRITTEN_BYTES = 2**26
REVERSED_POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""


class MetricsFiles:
    """Append records of metrics to the files of a run.

    Records that cannot be written, such as on a full disk, are kept and written first next time;
    ``error`` is the reason meanwhile. With ``tensorboard``, also write new event files with a curve
    for each number, and remove those of an earlier part of the run; raise RunDirectoryError.
    """

    def __init__(self, directory: RunDirectory, tensorboard: bool = False) -> None:
        self._directory = directory
        self._unwritten: dict[Path, bytearray] = {}
        self._event_files: dict[str, Path] = {}
        self.error: str | None = None
        if tensorboard:
            with directory.translated_errors():
                for kind in ("train", "test"):
                    self._event_files[kind] = _new_event_file(directory.path / "tensorboard" / kind)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records; raise FileWriteError if too many cannot be written."""
        for record in records:
            self._keep(self._directory.metrics, _line(record))
            self._keep_event(record)
        self._write()
        if sum(map(len, self._unwritten.values())) > MAX_UNWRITTEN_BYTES:
            raise FileWriteError(f"too many metrics are kept in memory: {self.error}")

    def replace(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace all records; if that raises RunDirectoryError, the old records remain."""
        records = list(records)
        with self._directory.replacing(self._directory.metrics) as file:
            file.write_bytes(b"".join(map(_line, records)))
        for record in records:
            self._keep_event(record)
        self._write()

    def _keep(self, path: Path, content: bytes) -> None:
        self._unwritten.setdefault(path, bytearray()).extend(content)

    def _keep_event(self, record: Mapping[str, Any]) -> None:
        if self._event_files:
            self._keep(self._event_files[record["kind"]], _event(record))

    def _write(self) -> None:
        self.error = None
        for path, content in list(self._unwritten.items()):
            try:
                with path.open("ab", buffering=0) as file:
                    while content:
                        del content[: file.write(content)]
                del self._unwritten[path]
            except OSError as error:
                self.error = (
                    f"{path} cannot be written: {error.strerror}; expected a writable directory "
                    f"with free space"
                )


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _new_event_file(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for earlier in directory.glob("events.out.tfevents.*"):
        earlier.unlink()
    path = directory / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    path.write_bytes(_record(_wall_time() + _field(3, LENGTH_DELIMITED, b"brain.Event:2")))
    return path


def _event(record: Mapping[str, Any]) -> bytes:
    """Return a record of metrics.jsonl as an event; its step is the number of samples."""
    content = _wall_time() + _field(2, VARINT, _varint(record["samples"]))
    summary = b""
    for name, number in record.items():
        if name not in ("kind", "samples") and number is not None:
            value = _field(1, LENGTH_DELIMITED, name.encode())
            value += _field(2, FIXED32, struct.pack("<f", number))
            summary += _field(1, LENGTH_DELIMITED, value)
    return _record(content + _field(5, LENGTH_DELIMITED, summary))


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
