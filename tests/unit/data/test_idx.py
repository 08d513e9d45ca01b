"""IDX files: arrays read from them, and the errors for damaged ones."""

import struct

import numpy as np
import pytest

from dist_net.data.named_datasets import read_idx
from dist_net.errors import DatasetError
from naming import naming


def idx_bytes(code, array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, code, array.ndim)) + shape + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = idx_bytes(0x08, IMAGES)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "some-idx3-ubyte"
        path.write_bytes(content)
        return path

    return write


def test_a_file_is_read_as_a_read_only_array(written):
    array = read_idx(written(CONTENT))
    np.testing.assert_array_equal(array, IMAGES)
    assert array.dtype == np.uint8
    assert not array.flags.writeable


def test_a_file_is_mapped_not_copied(written):
    path = written(CONTENT)
    array = read_idx(path)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert array[-1, -1, -1] == 0xFF


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
)
def test_every_element_type_is_read(written, code, dtype):
    values = np.array([-3, 0, 100] if dtype != "u1" else [3, 0, 100], dtype)
    np.testing.assert_array_equal(read_idx(written(idx_bytes(code, values))), values)


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", ["offset 0"]),
        (b"\0\0\x08", ["'00 00 08'"]),
        (b"\x89PNG and more", ["'89 50 4e 47'"]),
        (b"\0\0\x07\x01\0\0\0\x01\0", ["'00 00 07 01'"]),
        (b"\0\0\x08\0", ["'00 00 08 00'"]),
        (b"\0\0\x08\xc8" + b"\0\0\0\x01" * 200 + b"\0", ["1 to 64"]),
        (CONTENT[:9], ["offset 4", "5 bytes", 12]),
        (b"\0\0\x08\x02\0\0\0\0\0\0\0\x05", ["(0, 5)"]),
        (CONTENT[:-1], ["offset 16", 23, 24, "(2, 3, 4)"]),
        (CONTENT + b"x", ["offset 16", 25, 24, "(2, 3, 4)"]),
        (b"\0\0\x08\x03" + b"\xff" * 12, ["0 bytes"]),
    ],
)
def test_a_corrupt_file_is_refused_with_what_was_found(written, content, values):
    path = written(content)
    with pytest.raises(DatasetError, match=naming(path, *values)):
        read_idx(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=naming(tmp_path / "nothing")):
        read_idx(tmp_path / "nothing")
