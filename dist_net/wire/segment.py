"""Shared memory that the system frees when its last process ends; Linux only.

A segment is an anonymous file (memfd), which another process of the same user and host opens as
``/proc/PROCESS_ID/fd/DESCRIPTOR``. Its first page contains a random token, which identifies it, and
the size of the vectors; each vector begins at a page. The file's size is sealed, so that a peer
cannot truncate it under a mapping.
"""

import fcntl
import mmap
import os
import secrets
import struct
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np

from dist_net.errors import SegmentError
from dist_net.ground.vector import Vector
from dist_net.wire.messages import SegmentAddress

TOKEN_BYTES = 16

BASE, RESULT = 0, 1
"""A worker's vectors: the state that its local steps begin from, and the state after them."""

MAX_VECTORS = 4096
"""The limit for attached segments, so that a peer cannot make this process create objects."""

_PAGE_BYTES = mmap.PAGESIZE
_NAME = "dist-net"
_SIZE = struct.Struct("<q")


def available() -> bool:
    """Return whether this platform supports segments; otherwise arrays travel as frames."""
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


class SharedVectors(Protocol):
    """Vectors in shared memory: a ``Segment``, or a simulated segment."""

    @property
    def address(self) -> SegmentAddress: ...
    @property
    def vectors(self) -> int: ...
    def vector(self, index: int) -> Vector: ...
    def close(self) -> None: ...


class Segment:
    """``vectors`` float32 vectors of ``size`` elements each, in memory that processes share.

    Use ``create`` or ``attach``. The first write to a page allocates it. ``opened`` is this
    process's descriptor of the file, which ``close`` closes.
    """

    def __init__(self, address: SegmentAddress, size: int, opened: int, vectors: int) -> None:
        self.address = address
        self.size = size
        self._close_file = weakref.finalize(self, os.close, opened)  # once
        self._vectors: list[Vector] = []
        size_bytes = vectors * _stride(size)
        try:
            memory = mmap.mmap(opened, size_bytes, offset=_PAGE_BYTES)
        except (OSError, OverflowError) as error:
            self._close_file()
            raise SegmentError(
                f"cannot map {size_bytes} bytes of shared memory ({error}); "
                f"raise the limit on this process's address space (ulimit -v)"
            ) from error
        starts = range(0, size_bytes, _stride(size))
        self._vectors = [np.frombuffer(memory, np.float32, size, each) for each in starts]

    @property
    def vectors(self) -> int:
        return len(self._vectors)

    @classmethod
    def create(cls, vectors: int, size: int) -> "Segment":
        """Create a segment of zeros. Raise ``SegmentError`` if there is no memory."""
        token = secrets.token_bytes(TOKEN_BYTES)
        descriptor = -1
        try:
            descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, _PAGE_BYTES + vectors * _stride(size))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.pwrite(descriptor, token + _SIZE.pack(size), 0)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise SegmentError(
                f"cannot share {vectors} vectors of {size} elements in memory ({error.strerror})"
            ) from error
        address = SegmentAddress(os.getpid(), descriptor, token)
        return cls(address, size, descriptor, vectors)

    @classmethod
    def attach(cls, address: SegmentAddress, size: int) -> "Segment":
        """Map another process's segment. Raise ``SegmentError`` if it does not match."""
        path = f"/proc/{address.process_id:d}/fd/{address.descriptor:d}"
        try:
            # Opening another file, such as a device or a pipe, could block or have side effects.
            if not str(Path(path).readlink()).startswith(f"/memfd:{_NAME}"):
                raise _attach_error(path, "it is not a segment")
            opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                vectors = _checked_vectors(path, opened, address.token, size)
            except BaseException:
                os.close(opened)
                raise
        except (OSError, OverflowError) as error:
            raise _attach_error(path, str(error)) from error
        return cls(address, size, opened, vectors)

    def vector(self, index: int) -> Vector:
        """Return the vector at ``index``: always the same array, a view of the shared memory."""
        return self._vectors[index]

    def close(self) -> None:
        """Release the memory, which is unmapped with the last array that views it."""
        self._vectors.clear()
        self._close_file()


def _stride(size: int) -> int:
    return -(-4 * size // _PAGE_BYTES) * _PAGE_BYTES


def _checked_vectors(path: str, descriptor: int, token: bytes, size: int) -> int:
    """Return the number of vectors of ``size`` elements in the file; raise ``SegmentError``."""
    beginning = os.pread(descriptor, TOKEN_BYTES + _SIZE.size, 0)
    if len(token) != TOKEN_BYTES or beginning[:TOKEN_BYTES] != token:
        raise _attach_error(path, "its token does not match the announced token")
    if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise _attach_error(path, "its size is not sealed")
    file_bytes = os.fstat(descriptor).st_size
    payload = file_bytes - _PAGE_BYTES
    if payload <= 0:  # otherwise the first page, with the size of the vectors, is complete
        raise _attach_error(path, f"its {file_bytes} bytes contain no vector")
    (own_size,) = _SIZE.unpack_from(beginning, TOKEN_BYTES)
    if not 0 < own_size == size or payload % _stride(size):
        raise _attach_error(
            path, f"its {payload} bytes contain vectors of {own_size} float32 elements, not {size}"
        )
    vectors = payload // _stride(size)
    if vectors > MAX_VECTORS:
        raise _attach_error(path, f"it contains more than {MAX_VECTORS} vectors")
    return vectors


def _attach_error(path: str, cause: str) -> SegmentError:
    return SegmentError(
        f"cannot attach the shared memory {path}: {cause}; "
        "expected a segment of a process of the same user on this host"
    )
