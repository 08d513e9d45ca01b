"""Memory shared by the processes of one virtual host."""

import numpy as np

from dist_net.errors import SegmentError
from dist_net.vector import Vector
from dist_net.wire.messages import SegmentAddress


class VirtualSegment:
    """A `dist_net.wire.segment.SharedVectors`; attached processes can only read it."""

    def __init__(self, address: SegmentAddress, vectors: list[Vector], is_own: bool) -> None:
        self.address = address
        self._vectors = vectors
        self._is_own = is_own

    @property
    def vectors(self) -> int:
        return len(self._vectors)

    def vector(self, index: int) -> Vector:
        if not 0 <= index < len(self._vectors):
            raise SegmentError(f"there is no vector {index} in {self.address}")
        if self._is_own:
            return self._vectors[index]
        view = self._vectors[index].view()
        view.flags.writeable = False
        return view

    def release(self, index: int) -> None:
        """Overwrite the vector with garbage: late readers must notice."""
        self._vectors[index].fill(np.nan)

    def close(self) -> None:
        """Release the memory."""
        self._vectors = []


class VirtualMemory:
    """The segments of a host's processes; a segment can be attached while its owner lives."""

    def __init__(self) -> None:
        self._vectors: dict[SegmentAddress, list[Vector]] = {}

    def share(self, process_id: int, vectors: int, size: int) -> VirtualSegment:
        """Create a segment of a process."""
        own = [each for each in self._vectors if each.process_id == process_id]
        token = b"%d of %d" % (len(own), process_id)
        address = SegmentAddress(process_id, len(own), token)
        rows = list(np.zeros((vectors, size), np.float32))
        self._vectors[address] = rows
        return VirtualSegment(address, rows, is_own=True)

    def attach(self, address: SegmentAddress, size: int) -> VirtualSegment:
        """Attach another process's segment; raises SegmentError if it is gone."""
        found = self._vectors.get(address)
        if found is None or found[0].size != size:
            raise SegmentError(f"there is no segment {address} of vectors of {size} elements")
        return VirtualSegment(address, found, is_own=False)

    def process_ended(self, process_id: int) -> None:
        """Remove the segments of a process; attached processes keep them."""
        for address in [each for each in self._vectors if each.process_id == process_id]:
            del self._vectors[address]
