"""PyTorch's old format: what is read, and files that are refused before anything in them is run."""

import hashlib
import io
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import ModelFileError
from dist_net.nets.efficientnet_lite0 import read_tensors
from naming import naming

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


class Opcodes:
    """Writes pickles by hand, so that no PyTorch is needed for the names in them."""

    @staticmethod
    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    @staticmethod
    def integer(value):
        return b"J" + struct.pack("<i", value)

    @staticmethod
    def name(module, name):
        return f"c{module}\n{name}\n".encode()

    @classmethod
    def integers(cls, values):
        return b"(" + b"".join(map(cls.integer, values)) + b"t"


op = Opcodes
FLOATS, LONGS = op.name("torch", "FloatStorage"), op.name("torch", "LongStorage")
REBUILD = op.name("torch._utils", "_rebuild_tensor_v2")
NEW_DICT = op.name("collections", "OrderedDict") + b")R"


def storage(key, length, elements=FLOATS):
    parts = [op.text("storage"), elements, op.text(key), op.text("cpu"), op.integer(length)]
    return b"(" + b"".join(parts) + b"NtQ"


def tensor(key, shape, strides, length, offset=0, elements=FLOATS):
    place = op.integer(offset) + op.integers(shape) + op.integers(strides)
    return REBUILD + b"(" + storage(key, length, elements) + place + b"\x89" + NEW_DICT + b"tR"


def state(**tensors):
    items = b"".join(op.text(name) + each for name, each in tensors.items())
    version = b"}" + op.text("_metadata") + NEW_DICT + b"s"
    return b"\x80\x02" + NEW_DICT + b"(" + items + b"u" + version + b"b."


def elements(values, dtype="<f4", length=None):
    array = np.asarray(values, dtype)
    return struct.pack("<q", array.size if length is None else length) + array.tobytes()


WEIGHT = tensor("7", (2, 3), (1, 2), 6)
COUNT = tensor("3", (), (), 1, elements=LONGS)
STATE = state(weight=WEIGHT, count=COUNT)
STORAGES = elements([9], "<i8") + elements(range(6))


def file_of(
    described=STATE,
    keys=("3", "7"),
    storages=STORAGES,
    magic=MAGIC,
    protocol=PROTOCOL,
    system=SYSTEM,
):
    head = [pickle.dumps(each, 2) for each in (magic, protocol, system)]
    return b"".join([*head, described, pickle.dumps(list(keys), 2), storages])


def read(path: Path, content: bytes):
    path.write_bytes(content)
    return read_tensors(path, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def test_tensors_are_read_by_name_with_their_strides(path):
    found = read(path, file_of())
    assert found.keys() == {"weight", "count"}
    np.testing.assert_array_equal(found["weight"], [[0, 2, 4], [1, 3, 5]])
    assert found["weight"].dtype == np.float32
    assert found["count"].shape == ()
    assert found["count"] == 9
    assert not any(each.flags.writeable for each in found.values())


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:-1] + b"!"])
def test_a_file_of_another_size_or_checksum_is_not_looked_into(path, change, monkeypatch):
    content = file_of()
    path.write_bytes(change(content))
    monkeypatch.setattr("pickletools.genops", None)
    with pytest.raises(ModelFileError, match=naming("weights.pth", "553 bytes", "SHA-256")):
        read_tensors(path, len(content), hashlib.sha256(content).hexdigest())


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(ModelFileError, match=naming("weights.pth", "No such file", "10 bytes")):
        read_tensors(path, 10, "")


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("place", ["magic", "described", "keys"])
def test_no_function_is_called_whatever_a_file_names(path, tmp_path, place):
    evil = Evil(tmp_path / "evidence")
    content = file_of(**{place: pickle.dumps(evil, 2) if place == "described" else [evil]})
    with suppress(ModelFileError):
        read(path, content)
    assert [*tmp_path.iterdir()] == [path]


def begun(*instructions):
    return b"\x80\x02" + b"".join(instructions) + b"."


UNUSUAL = {
    "an instruction for objects": file_of(begun(b"(", FLOATS, b"o")),
    "a name from the stack": file_of(begun(op.text("os"), op.text("system"), b"\x93")),
    "an empty stack": file_of(begun(b"R")),
    "no mark": file_of(begun(b"t")),
    "what was never kept": file_of(begun(b"h\x09")),
    "no tensors": file_of(begun(op.integer(3))),
    "no pickle": file_of(b"no pickle"),
    "another type of elements": file_of(
        state(weight=tensor("7", (2, 3), (1, 2), 6, elements=op.name("torch", "HalfStorage")))
    ),
    "a key too many": file_of(keys=("3", "7", "8")),
    "elements that are missing": file_of(storages=STORAGES[:-4]),
    "a length that nothing has": file_of(
        state(weight=tensor("7", (2**30,), (1,), 2**30)), ("7",), elements([], length=2**30)
    ),
    "strides that leave the storage": file_of(
        state(weight=tensor("7", (2, 3), (1, 3), 6), count=COUNT)
    ),
    "as many strides as no shape": file_of(state(weight=tensor("7", (6,), (1, 1), 6), count=COUNT)),
}


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=UNUSUAL)
def test_another_file_is_refused_in_one_line(path, content):
    with pytest.raises(ModelFileError, match=naming("weights.pth")) as refused:
        read(path, content)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_cut_short_anywhere_is_refused(path):
    content = file_of()
    for length in range(0, len(content), 9):
        with pytest.raises(ModelFileError):
            read(path, content[:length])


def test_the_file_is_the_one_that_python_would_unpickle():
    """The instructions above are those of the format."""

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            return {"OrderedDict": OrderedDict}.get(name, lambda *arguments: arguments)

        def persistent_load(self, described):
            return described[2:]

    stream = io.BytesIO(file_of())
    *_, found, keys = (Reader(stream).load() for _ in range(5))
    assert found["weight"][0] == ("7", "cpu", 6, None)
    assert keys == ["3", "7"]
