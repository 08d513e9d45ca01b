"""IDX files: arrays read from them, and the errors for damaged ones."""

import struct

import numpy as np
import pytest

from dist_net.data.named_datasets import FILES, read_idx
from dist_net.errors import DatasetError
from naming import naming

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 3, 4) + IMAGES.tobytes()


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


@pytest.mark.parametrize("content", [b"", CONTENT[:9], CONTENT[:-1]])
def test_a_file_that_is_cut_short_is_refused(written, content):
    path = written(content)
    with pytest.raises(DatasetError, match=naming(path, "IDX")):
        read_idx(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=naming(tmp_path / "nothing")):
        read_idx(tmp_path / "nothing")


def test_fashion_mnist_has_the_bytes_of_its_images_and_labels():
    expected = [size_bytes for n in (60_000, 10_000) for size_bytes in (16 + n * 28 * 28, 8 + n)]
    assert [file.sizes_bytes for file in FILES] == [(size_bytes,) for size_bytes in expected]
