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


@pytest.fixture(scope="module", autouse=True)
def freeze_objects_of_other_tests() -> None:
    """Let the collections of these tests, of which each has several, skip imported libraries."""
    gc.collect()
    gc.freeze()


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


def test_both_sides_read_what_the_other_writes(owner):
    attached = attach(owner)
    for index, (writer, reader) in enumerate([(owner, attached), (attached, owner)]):
        writer.vector(index)[:] = np.arange(SIZE)
        np.testing.assert_array_equal(reader.vector(index), np.arange(SIZE))


def test_an_array_outlives_close_and_then_the_memory_goes(owner):
    attached = attach(owner)
    view = attached.vector(0)[10:20]
    attached.close()
    owner.vector(0)[10] = 7
    assert view[0] == 7
    assert mapped_segments() == 2
    del view, attached
    assert mapped_segments() == 1


def test_a_segment_is_closed_once(owner):
    owner.close()
    opened = os.open(os.devnull, os.O_RDONLY)  # takes the descriptor's number
    owner.close()
    os.close(opened)


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
import os, resource
from dist_net.errors import SegmentError
from dist_net.wire.segment import Segment

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
opened = len(os.listdir("/proc/self/fd"))
try:
    Segment.create(vectors=2, size=2**30)
except SegmentError as error:
    print(error)
assert len(os.listdir("/proc/self/fd")) == opened
"""


def test_memory_beyond_the_limit_of_the_process_is_refused_with_the_remedy():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )
    assert "ulimit -v" in done.stdout
    assert str(2**33) in done.stdout


def test_without_memfd_there_are_no_segments(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    assert not segment_module.available()
