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
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np

from dist_net.errors import SegmentError
from dist_net.vector import Vector
from dist_net.wire.messages import SegmentAddress

TOKEN_BYTES = 16

MAX_VECTORS = 4096
"""In a segment that is attached: a peer must not make this process create more objects."""

MAPPED_BYTES = 2**28
"""How much is mapped at a time, if that is more than one vector; each mapping has a descriptor."""

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
    def release(self, index: int) -> None: ...
    def close(self) -> None: ...


class Segment:
    """``vectors`` float32 vectors of ``size`` elements each, in memory that processes share.

    Made by `create` or `attach`. A vector is mapped when it is first asked for, with its neighbours
    up to ``MAPPED_BYTES``, and uses memory from when it is first written. ``opened`` is this
    process's own descriptor of the file, which it closes.
    """

    def __init__(
        self, address: SegmentAddress, size: int, opened: int, vectors: int, access: int
    ) -> None:
        self.address = address
        self.size = size
        self.vectors = vectors
        self._opened = opened
        self._close_file = weakref.finalize(self, os.close, opened)  # once
        self._access = access
        self._stride = _stride(size)
        self._grouped = max(1, MAPPED_BYTES // self._stride)
        self._groups: dict[int, tuple[mmap.mmap, list[Vector]]] = {}

    @classmethod
    def create(cls, vectors: int, size: int) -> "Segment":
        """A new segment of zeros, owned by this process, whose first vector is mapped.

        Raise `SegmentError`, as `vector` does, for memory that the system does not grant.
        """
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
        return cls(address, size, descriptor, vectors, mmap.ACCESS_WRITE)._with_first_vector()

    @classmethod
    def attach(cls, address: SegmentAddress, size: int) -> "Segment":
        """Map another process's segment; raises `SegmentError` unless it is what was announced.

        Its vectors are read-only arrays.
        """
        path = f"/proc/{address.process_id:d}/fd/{address.descriptor:d}"
        try:
            # Opening some other file, a device or a pipe, could do harm or block.
            if not str(Path(path).readlink()).startswith(f"/memfd:{_NAME}"):
                raise _attach_error(path, "it is not a segment")
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                vectors = _checked_vectors(path, opened, address.token, size)
            except BaseException:
                os.close(opened)
                raise
        except (OSError, OverflowError) as error:
            raise _attach_error(path, str(error)) from error
        return cls(address, size, opened, vectors, mmap.ACCESS_READ)._with_first_vector()

    def _with_first_vector(self) -> "Segment":
        try:
            self.vector(0)
        except SegmentError:
            self.close()
            raise
        return self

    def vector(self, index: int) -> Vector:
        """The vector at ``index``, borrowed: the array is the shared memory itself.

        It is the same array each time.
        """
        if not 0 <= index < self.vectors:
            raise SegmentError(
                f"there is no vector {index} in the segment of process {self.address.process_id}; "
                f"expected 0 to {self.vectors - 1}"
            )
        group, place = divmod(index, self._grouped)
        if group not in self._groups:
            self._groups[group] = self._mapped(group * self._grouped)
        return self._groups[group][1][place]

    def _mapped(self, first: int) -> tuple[mmap.mmap, list[Vector]]:
        size_bytes = min(self._grouped, self.vectors - first) * self._stride
        offset = _PAGE_BYTES + first * self._stride
        try:
            memory = mmap.mmap(self._opened, size_bytes, access=self._access, offset=offset)
        except (OSError, OverflowError) as error:
            raise SegmentError(
                f"cannot map {size_bytes} bytes of shared memory ({error}); expected that much "
                f"below the limit on this process's address space (ulimit -v)"
            ) from error
        starts = range(0, size_bytes, self._stride)
        return memory, [np.frombuffer(memory, np.float32, self.size, each) for each in starts]

    def release(self, index: int) -> None:
        """Give the memory of a vector back to the system; its elements are zeros then."""
        group, place = divmod(index, self._grouped)
        if group in self._groups:
            memory = self._groups[group][0]
            memory.madvise(mmap.MADV_REMOVE, place * self._stride, self._stride)

    def close(self) -> None:
        """Let go of the memory; it is unmapped when the last array that views it is gone."""
        self._groups.clear()
        self._close_file()
        self.vectors = 0  # there are none any more


def _stride(size: int) -> int:
    return -(-4 * size // _PAGE_BYTES) * _PAGE_BYTES


def _checked_vectors(path: str, descriptor: int, token: bytes, size: int) -> int:
    """How many vectors of ``size`` elements the file holds, if it is a segment."""
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
    vectors = payload // _stride(size)
    if vectors > MAX_VECTORS:
        raise _attach_error(path, f"it holds more than {MAX_VECTORS} vectors")
    return vectors


def _attach_error(path: str, cause: str) -> SegmentError:
    return SegmentError(
        f"cannot attach the shared memory {path}: {cause}; "
        "expected a segment of a process of the same user on this host"
    )
