"""Memory shared by the processes of one virtual host."""

from collections.abc import Callable

import numpy as np

from dist_net.errors import SegmentError
from dist_net.ground.vector import Vector
from dist_net.wire.messages import SegmentAddress
from dist_net.wire.segment import BASE, RESULT


class VirtualSegment:
    """A server's or a worker's mapping of a `dist_net.wire.segment.SharedVectors`.

    The server can write ``BASE`` only, the worker ``RESULT`` only.
    """

    def __init__(self, address: SegmentAddress, vectors: list[Vector], written: int) -> None:
        self.address = address
        self._vectors = [each.view() for each in vectors]
        for index, vector in enumerate(self._vectors):
            vector.flags.writeable = index == written

    @property
    def vectors(self) -> int:
        return len(self._vectors)

    def vector(self, index: int) -> Vector:
        return self._vectors[index]

    def close(self) -> None:
        """Unmap the memory."""
        self._vectors = []


class VirtualMemory:
    """A host's shared memory; a process may share at most ``limit`` segments.

    A segment can be attached until its owner closes it or ends, unless ``cannot_map`` returns True.
    """

    def __init__(self, limit: int = 4096, cannot_map: Callable[[], bool] = lambda: False) -> None:
        self._limit = limit
        self._cannot_map = cannot_map
        self._shared: dict[SegmentAddress, tuple[VirtualSegment, list[Vector]]] = {}
        self._numbers = 0

    def share(self, process_id: int, vectors: int, size: int) -> VirtualSegment:
        """Create a segment of a process. Raise ``SegmentError`` if the memory is used up."""
        if len(self.segments_of(process_id)) >= self._limit:
            raise SegmentError(f"{self._limit} segments are the limit of this host")
        self._numbers += 1
        address = SegmentAddress(process_id, self._numbers, b"%d" % self._numbers)
        rows = list(np.zeros((vectors, size), np.float32))
        self._shared[address] = VirtualSegment(address, rows, written=BASE), rows
        return self._shared[address][0]

    def segments_of(self, process_id: int) -> list[VirtualSegment]:
        """Return the segments that a process shares and has not closed."""
        return [
            segment
            for address, (segment, _) in self._shared.items()
            if address.process_id == process_id and segment.vectors
        ]

    def attach(self, address: SegmentAddress, size: int) -> VirtualSegment:
        """Attach a segment of another process.

        Raise ``SegmentError`` if it is gone, or cannot be mapped.
        """
        if self._cannot_map():
            raise SegmentError("there is no address space left")
        segment, rows = self._shared.get(address, (None, []))
        if segment is None or not segment.vectors or rows[0].size != size:
            raise SegmentError(f"there is no segment {address} of vectors of {size} elements")
        return VirtualSegment(address, rows, written=RESULT)

    def process_ended(self, process_id: int) -> None:
        """Remove the segments of a process; attached processes keep them."""
        for address in [each for each in self._shared if each.process_id == process_id]:
            del self._shared[address]
