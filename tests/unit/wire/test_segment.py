"""Shared memory inside one process; tests/process shows what a killed owner leaves: nothing."""

import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import SegmentError
from dist_net.wire import segment as segment_module
from dist_net.wire.messages import SegmentAddress
from dist_net.wire.segment import Segment
from naming import naming

pytestmark = pytest.mark.skipif(not segment_module.available(), reason="needs Linux's memfd")

SIZE = 1500


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped_segments() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:dist-net")


@pytest.fixture
def owner():
    before = open_files(), mapped_segments()
    segment = Segment.create(vectors=3, size=SIZE)
    yield segment
    segment.close()
    del segment
    assert (open_files(), mapped_segments()) == before


def attach(owner: Segment, **changes: object) -> Segment:
    size = changes.pop("size", owner.size)
    return Segment.attach(owner.address._replace(**changes), size)


def test_vectors_are_zero_separate_and_aligned(owner):
    assert owner.vectors == 3
    for index in range(3):
        vector = owner.vector(index)
        assert (vector.shape, vector.dtype) == ((SIZE,), np.float32)
        assert vector.ctypes.data % os.sysconf("SC_PAGESIZE") == 0
        assert not vector.any()
        vector[:] = index + 1
    assert [set(owner.vector(index).tolist()) for index in range(3)] == [{1.0}, {2.0}, {3.0}]


def test_what_the_owner_writes_the_other_reads(owner):
    attached = attach(owner)
    owner.vector(2)[:] = np.arange(SIZE)
    np.testing.assert_array_equal(attached.vector(2), np.arange(SIZE))


def test_only_the_owner_can_write_vectors(owner):
    with pytest.raises(ValueError, match="read-only"):
        attach(owner).vector(0)[0] = 1


@pytest.mark.parametrize("index", [-1, 3])
def test_a_vector_that_is_not_there_is_named(owner, index):
    with pytest.raises(SegmentError, match=naming(f"vector {index}", "0 to 2")):
        owner.vector(index)


def test_an_array_outlives_close_and_then_the_memory_goes(owner):
    attached = attach(owner)
    view = attached.vector(0)[10:20]
    attached.close()
    owner.vector(0)[10] = 7
    assert view[0] == 7
    assert mapped_segments() == 2
    del view, attached
    assert mapped_segments() == 1


def test_a_closed_segment_gives_no_vectors(owner):
    owner.close()
    owner.close()
    with pytest.raises(SegmentError, match=naming("vector 0", "0 to -1")):
        owner.vector(0)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"token": bytes(16)}, "token"),
        ({"token": b""}, "token"),
        ({"size": SIZE * 2}, f"{SIZE} float32 elements, not {SIZE * 2}"),
        ({"descriptor": 10_000}, "No such file"),
        ({"descriptor": -1}, "No such file"),
        ({"process_id": 2**31}, "No such file"),
    ],
)
def test_only_the_announced_segment_is_attached(owner, changes, cause):
    with pytest.raises(SegmentError, match=cause):
        attach(owner, **changes)


def test_another_kind_of_file_is_not_opened(owner):
    reader, writer = os.pipe()
    with pytest.raises(SegmentError, match=naming("/proc/", "segment")):
        attach(owner, descriptor=reader)
    os.close(reader)
    os.close(writer)


def test_a_file_that_could_be_cut_short_is_not_mapped(owner):
    descriptor = os.memfd_create("dist-net")
    os.write(descriptor, owner.address.token + bytes(4096 * 3 - 16))
    with pytest.raises(SegmentError, match="sealed"):
        attach(owner, descriptor=descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("size", "file_bytes", "cause"),
    [
        (0, 4096 * 3, " 0 float32"),
        (-1, 4096 * 3, " -1 float32"),
        (6, 16, "no vector"),
        (6, 24, "no vector"),
        (6, 4096, "no vector"),
        (6, 4096 * 3 + 1, "8193 bytes"),
        (6, 4096 * 2**20, "4096 vectors"),
        (2**60, 4096 * 3, "1152921504606846976 float32"),
        (6, 2**62, "4096 vectors"),
    ],
)
def test_a_segment_made_by_hand_is_refused(size, file_bytes, cause):
    token = bytes(range(16))
    descriptor = os.memfd_create("dist-net", os.MFD_ALLOW_SEALING)
    os.write(descriptor, (token + size.to_bytes(8, "little", signed=True))[:file_bytes])
    os.ftruncate(descriptor, file_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(SegmentError, match=cause):
        Segment.attach(SegmentAddress(os.getpid(), descriptor, token), size)
    os.close(descriptor)


def test_the_size_cannot_be_changed(owner):
    with pytest.raises(PermissionError):
        os.ftruncate(owner.address.descriptor, 4096)


def test_room_that_the_system_does_not_have_is_named():
    before = open_files()
    with pytest.raises(SegmentError, match=naming(2**60, "Cannot allocate memory")):
        Segment.create(vectors=1, size=2**58)
    assert open_files() == before


LIMITED = """
import resource, sys
from dist_net.errors import SegmentError
from dist_net.wire.messages import SegmentAddress
from dist_net.wire.segment import Segment

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
segment = Segment.create(vectors=450, size=10_000_000)
mapped = 0
try:
    for index in range(450):
        segment.vector(index)[0] = 1.0
        mapped += 1
except SegmentError as error:
    print(mapped, error)
"""


def test_only_what_is_used_is_mapped_so_that_a_process_may_have_a_limit():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )
    mapped, _, error = done.stdout.partition(" ")
    assert 6 <= int(mapped) < 27  # 40 MB each
    assert "ulimit -v" in error


def test_memory_that_is_released_is_zero_and_used_again(owner):
    owner.vector(1)[:] = 3.0
    attached = attach(owner)
    used = os.fstat(owner.address.descriptor).st_blocks
    owner.release(1)
    assert os.fstat(owner.address.descriptor).st_blocks < used
    assert not attached.vector(1).any()
    owner.vector(1)[:] = 4.0
    assert (attached.vector(1) == 4.0).all()


def test_vectors_are_mapped_in_groups(owner, monkeypatch):
    monkeypatch.setattr(segment_module, "MAPPED_BYTES", 2 * 8192)
    before = mapped_segments()
    attached = attach(owner)
    assert mapped_segments() == before + 1
    assert attached.vector(1) is attached.vector(1)
    assert mapped_segments() == before + 1
    owner.vector(2)[5] = 6.0
    assert attached.vector(2)[5] == 6.0
    assert mapped_segments() == before + 2


def test_without_memfd_there_are_no_segments(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    assert not segment_module.available()
