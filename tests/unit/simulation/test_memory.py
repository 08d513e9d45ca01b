"""Shared memory of a virtual host: who writes what, and how long a segment exists."""

import numpy as np
import pytest

from dist_net.errors import SegmentError
from dist_net.wire.segment import BASE, RESULT
from simulation.memory import VirtualMemory

SERVER, SIZE = 1, 3


def test_the_server_writes_the_base_and_the_worker_the_result() -> None:
    memory = VirtualMemory()
    own = memory.share(SERVER, 2, SIZE)
    attached = memory.attach(own.address, SIZE)
    own.vector(BASE).fill(1)
    attached.vector(RESULT).fill(2)
    np.testing.assert_array_equal(attached.vector(BASE), 1)
    np.testing.assert_array_equal(own.vector(RESULT), 2)
    for vector in (own.vector(RESULT), attached.vector(BASE)):
        with pytest.raises(ValueError, match="read-only"):
            vector.fill(3)


def test_a_segment_can_be_attached_until_its_server_closes_it_or_ends() -> None:
    memory = VirtualMemory(limit=2)
    closed, open_one = (memory.share(SERVER, 2, SIZE) for _ in range(2))
    with pytest.raises(SegmentError):
        memory.share(SERVER, 2, SIZE)
    closed.close()
    assert memory.segments_of(SERVER) == [open_one]
    for address, size in ((closed.address, SIZE), (open_one.address, SIZE + 1)):
        with pytest.raises(SegmentError):
            memory.attach(address, size)
    attached = memory.attach(open_one.address, SIZE)
    memory.process_ended(SERVER)
    assert attached.vectors == 2
    with pytest.raises(SegmentError):
        memory.attach(open_one.address, SIZE)
