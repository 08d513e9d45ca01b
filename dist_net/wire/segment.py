"""Shared memory that nobody can leave behind; Linux only.

A segment is an anonymous file (memfd). Another process of the same user and host opens it through
``/proc/PROCESS_ID/fd/DESCRIPTOR``. It has no name: when the last process that maps it ends, for
whatever reason, the memory is gone.

The first page holds the vectors' size and a random token, by which the opener knows that it has the
right segment. Vectors follow, each beginning at a page; the opener can only read them. The file's
size is sealed, so that a peer cannot cut it short under a mapping.
"""

import fcntl
import mmap
import os
import secrets
import struct
from pathlib import Path
from typing import Protocol

import numpy as np

from dist_net.errors import SegmentError
from dist_net.vector import Vector
from dist_net.wire.messages import SegmentAddress

TOKEN_BYTES = 16

MOST_VECTORS = 4096
"""In a segment that is attached: a peer must not make this process create more objects."""

_PAGE_BYTES = mmap.PAGESIZE
_NAME = "dist-net"
_SIZE = struct.Struct("<q")


def available() -> bool:
    """Whether this platform has what segments need; without, arrays travel as frames."""
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


class SharedVectors(Protocol):
    """Vectors that several processes see: a `Segment`, or a simulation's."""

    @property
    def address(self) -> SegmentAddress: ...
    @property
    def vectors(self) -> int: ...
    def vector(self, index: int) -> Vector: ...
    def close(self) -> None: ...


class Segment:
    """``vectors`` float32 vectors of ``size`` elements each, in memory that processes share.

    Made by `create` or `attach`. Memory is used when a vector is first written, not before.
    """

    def __init__(
        self,
        process_id: int,
        descriptor: int,
        token: bytes,
        size: int,
        memory: mmap.mmap,
    ) -> None:
        self.process_id = process_id
        self.descriptor = descriptor
        self.token = token
        self.size = size
        stride = _stride(size)
        self._owned_descriptor: int | None = None
        self._vectors: list[Vector] = [
            np.frombuffer(memory, np.float32, size, offset)
            for offset in range(_PAGE_BYTES, len(memory), stride)
        ]

    @classmethod
    def create(cls, vectors: int, size: int) -> "Segment":
        """A new segment of zeros, owned by this process; raises `SegmentError`."""
        token = secrets.token_bytes(TOKEN_BYTES)
        descriptor = -1
        try:
            descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, _PAGE_BYTES + vectors * _stride(size))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.pwrite(descriptor, token + _SIZE.pack(size), 0)
            memory = mmap.mmap(descriptor, 0)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise SegmentError(
                f"cannot share {vectors} vectors of {size} elements in memory ({error.strerror})"
            ) from error
        segment = cls(os.getpid(), descriptor, token, size, memory)
        segment._owned_descriptor = descriptor
        return segment

    @classmethod
    def attach(cls, process_id: int, descriptor: int, token: bytes, size: int) -> "Segment":
        """Map another process's segment; raises `SegmentError` unless it is what was announced.

        Its vectors are read-only arrays.
        """
        path = f"/proc/{process_id:d}/fd/{descriptor:d}"
        try:
            # Opening some other file, a device or a pipe, could do harm or block.
            if not str(Path(path).readlink()).startswith(f"/memfd:{_NAME}"):
                raise _attach_error(path, "it is not a segment")
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                file_bytes = _checked_file_bytes(path, opened, token, size)
                memory = mmap.mmap(opened, file_bytes, access=mmap.ACCESS_READ)
            finally:
                os.close(opened)
        except (OSError, OverflowError) as error:
            raise _attach_error(path, str(error)) from error
        return cls(process_id, descriptor, token, size, memory)

    @property
    def address(self) -> SegmentAddress:
        return SegmentAddress(self.process_id, self.descriptor, self.token)

    @property
    def vectors(self) -> int:
        """How many vectors there are; 0 after `close`."""
        return len(self._vectors)

    def vector(self, index: int) -> Vector:
        """The vector at ``index``, borrowed: the array is the shared memory itself."""
        if not 0 <= index < len(self._vectors):
            raise SegmentError(
                f"there is no vector {index} in the segment of process {self.process_id}; "
                f"expected 0 to {len(self._vectors) - 1}"
            )
        return self._vectors[index]

    def close(self) -> None:
        """Let go of the memory; it is unmapped when the last array that views it is gone."""
        self._vectors.clear()
        if self._owned_descriptor is not None:
            os.close(self._owned_descriptor)
            self._owned_descriptor = None


def _stride(size: int) -> int:
    return -(-4 * size // _PAGE_BYTES) * _PAGE_BYTES


def _checked_file_bytes(path: str, descriptor: int, token: bytes, size: int) -> int:
    """The file's size, which is that of a segment of vectors of ``size`` elements."""
    beginning = os.pread(descriptor, TOKEN_BYTES + _SIZE.size, 0)
    if len(token) != TOKEN_BYTES or beginning[:TOKEN_BYTES] != token:
        raise _attach_error(path, "its token is not the one announced")
    if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise _attach_error(path, "its size is not sealed")
    file_bytes = os.fstat(descriptor).st_size
    payload = file_bytes - _PAGE_BYTES
    if payload <= 0:  # and so there is a first page, which says what the vectors' size is
        raise _attach_error(path, f"its {file_bytes} bytes hold no vector")
    (own_size,) = _SIZE.unpack_from(beginning, TOKEN_BYTES)
    if not 0 < own_size == size or payload % _stride(size):
        raise _attach_error(
            path, f"its {payload} bytes hold vectors of {own_size} float32 elements, not of {size}"
        )
    if payload // _stride(size) > MOST_VECTORS:
        raise _attach_error(path, f"it holds more than {MOST_VECTORS} vectors")
    return file_bytes


def _attach_error(path: str, cause: str) -> SegmentError:
    return SegmentError(
        f"cannot attach the shared memory {path}: {cause}; "
        "expected a segment of a process of the same user on this host"
    )
