"""Darknet's .weights files: where each number lies, what is refused and how, what is written."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import BadInputError, FileWriteError, ModelFileError, ParameterError
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import read_weights, write_weights
from naming import naming

# A map of 2 x 3 pixels and 4 channels in two groups, then five outputs with batch norm, then two.
TEXT = """[net]
height=2
width=3
channels=2
[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
groups=2
activation=linear
[connected]
batch_normalize=1
output=5
activation=linear
[connected]
output=2
activation=linear
"""
NETWORK = DarknetNetwork(parse_configuration(TEXT, "small.cfg"))
HEADER = struct.pack("<iiiQ", 0, 2, 0, 1234)

# In a file's order: the name, and the shape that the numbers lie in there.
ARRAYS = [
    ("000_convolutional/beta", (4,)),
    ("000_convolutional/gamma", (4,)),
    ("000_convolutional/mean", (4,)),
    ("000_convolutional/variance", (4,)),
    ("000_convolutional/kernel", (4, 1, 3, 3)),
    ("001_connected/beta", (5,)),
    ("001_connected/kernel", (5, 4, 2, 3)),
    ("001_connected/gamma", (5,)),
    ("001_connected/mean", (5,)),
    ("001_connected/variance", (5,)),
    ("002_connected/bias", (2,)),
    ("002_connected/kernel", (2, 5, 1, 1)),
]
SIZE = NETWORK.layout.size
FILE_BYTES = len(HEADER) + 4 * SIZE


def numbers() -> np.ndarray:
    """The numbers of a file, all different, and none below 0."""
    return np.arange(1, SIZE + 1, dtype="<f4")


def file_of(tmp_path: Path, values: np.ndarray, header: bytes = HEADER) -> Path:
    path = tmp_path / "net.weights"
    path.write_bytes(header + values.astype("<f4").tobytes())
    return path


def test_every_array_comes_from_its_place_in_the_file(tmp_path: Path) -> None:
    views = NETWORK.layout.views(read_weights(file_of(tmp_path, numbers()), NETWORK))
    assert views.keys() == {name for name, _ in ARRAYS}
    start = 1
    for name, shape in ARRAYS:
        stored = np.arange(start, start + np.prod(shape)).reshape(shape)
        start += stored.size
        if len(shape) == 4:  # outputs, inputs, rows, columns
            stored = stored.transpose(2, 3, 1, 0)
        assert np.array_equal(views[name], stored.reshape(views[name].shape)), name


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<iiii", 0, 1, 0, 5),
        struct.pack("<iiiQ", 0, 2, 5, 1 << 40),
        struct.pack("<iiiQ", 1, 0, 0, 5),
    ],
)
def test_the_number_of_images_seen_has_four_or_eight_bytes(tmp_path: Path, header: bytes) -> None:
    path = file_of(tmp_path, numbers(), header)
    assert read_weights(path, NETWORK).sum() == numbers().sum()


def test_in_the_earliest_files_connected_kernels_lie_the_other_way_round(tmp_path: Path) -> None:
    path = file_of(tmp_path, numbers(), struct.pack("<iiii", 1001, 0, 0, 5))
    views = NETWORK.layout.views(read_weights(path, NETWORK))
    last = numbers()[-10:].reshape(5, 2)
    assert np.array_equal(views["002_connected/kernel"], last)


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, numbers())
    vector = read_weights(path, NETWORK)
    write_weights(tmp_path / "copy.weights", NETWORK, vector, seen=1234)
    assert (tmp_path / "copy.weights").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("kept", "place"),
    [
        (20, "the beta of layer 000_convolutional (small.cfg:5)"),
        (20 + 15, "the beta of layer 000_convolutional"),
        (20 + 16, "the gamma of layer 000_convolutional"),
        (20 + 4 * 16, "the kernel of layer 000_convolutional"),
        (20 + 4 * 52, "the beta of layer 001_connected (small.cfg:12)"),
        (FILE_BYTES - 1, "the kernel of layer 002_connected (small.cfg:16)"),
    ],
)
def test_a_file_cut_short_is_refused_with_where_it_ends(
    tmp_path: Path, kept: int, place: str
) -> None:
    path = file_of(tmp_path, numbers())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFileError) as caught:
        read_weights(path, NETWORK)
    assert f"ends after {kept} bytes, in {place}" in str(caught.value)
    assert f"expected {FILE_BYTES} bytes for the network of small.cfg" in str(caught.value)


def test_a_file_cut_short_in_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.weights"
    for kept in (0, 11, 12, 19):
        path.write_bytes(HEADER[:kept])
        with pytest.raises(ModelFileError, match=naming(path, f"{kept} bytes")):
            read_weights(path, NETWORK)


def test_a_file_that_goes_on_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, np.append(numbers(), 1.0))
    with pytest.raises(ModelFileError) as caught:
        read_weights(path, NETWORK)
    assert f"{FILE_BYTES + 4} bytes are 4 more" in str(caught.value)
    assert f"expected {FILE_BYTES}: use the .cfg that belongs" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 20, 51, SIZE - 1])
def test_a_number_that_is_not_finite_is_refused(
    tmp_path: Path, value: float, position: int
) -> None:
    values = numbers()
    values[position] = value
    with pytest.raises(ModelFileError, match=rf"layer 00._\w+ .*{value}"):
        read_weights(file_of(tmp_path, values), NETWORK)


def test_a_variance_below_0_is_refused(tmp_path: Path) -> None:
    values = numbers()
    values[13] = -0.5
    words = r"variance.*000_convolutional.*small\.cfg:5.*-0\.5"
    with pytest.raises(ModelFileError, match=words):
        read_weights(file_of(tmp_path, values), NETWORK)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ModelFileError, match=words):
            read_weights(path, NETWORK)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = file_of(tmp_path, numbers())
    before = path.read_bytes()
    vector = read_weights(path, NETWORK)
    vector[-1] = np.nan
    with pytest.raises(ModelFileError, match=naming("nan", "001_connected")):
        write_weights(path, NETWORK, vector)
    with pytest.raises(ParameterError):
        write_weights(path, NETWORK, vector[:-1])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileWriteError, match=naming("net.weights", "No such file")):
        write_weights(tmp_path / "missing" / "net.weights", NETWORK, vector)
    assert not issubclass(FileWriteError, BadInputError)


def test_reading_takes_little_memory_beside_the_vector(tmp_path: Path) -> None:
    text = "[net]\nheight=1\nwidth=1\nchannels=3000\n[conv]\nfilters=1000\nactivation=linear\n"
    network = DarknetNetwork(parse_configuration(text, "wide"))
    vector = np.ones(network.layout.size, np.float32)
    tracemalloc.start()
    try:
        write_weights(tmp_path / "net.weights", network, vector)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        read = read_weights(tmp_path / "net.weights", network)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(read, vector)
    assert written < 0.2 * vector.nbytes
    assert peak < 1.2 * vector.nbytes
