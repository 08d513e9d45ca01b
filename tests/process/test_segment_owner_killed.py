"""A segment's owner is killed: the memory stays while it is used, and then nothing is left."""

import gc
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dist_net.wire.messages import SegmentAddress
from dist_net.wire.segment import Segment, available

pytestmark = [
    pytest.mark.main_path,
    pytest.mark.skipif(not available(), reason="needs Linux's memfd"),
]

SIZE = 101_770
OWNER = f"""
import sys
from dist_net.wire.segment import Segment
segment = Segment.create(vectors=4, size={SIZE})
segment.vector(3)[:] = 5.0
process_id, descriptor, token = segment.address
print(process_id, descriptor, token.hex(), flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_of_a_killed_owners_segment():
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        process_id, descriptor, token = owner.stdout.readline().split()
        address = SegmentAddress(int(process_id), int(descriptor), bytes.fromhex(token))
        segment = Segment.attach(address, SIZE)
        owner.send_signal(signal.SIGKILL)
        assert owner.wait(timeout=60) == -signal.SIGKILL

    vector = segment.vector(3)
    np.testing.assert_array_equal(vector, np.full(SIZE, 5, np.float32))

    segment.close()
    del vector, segment
    gc.collect()
    assert "/memfd:dist-net" not in Path("/proc/self/maps").read_text()
    assert not list(Path("/dev/shm").glob("*dist-net*"))
