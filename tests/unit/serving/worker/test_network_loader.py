"""The files of prepared kernels that processes share: found, fetched in pieces, kept or not."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from described import described
from dist_net.errors import ModelLoadError, NoAnswerError
from dist_net.nn.inference import write_prepared
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker import loaded_models as arrays
from dist_net.serving.worker.loaded_models import keep_newest, mapped_arrays
from dist_net.wire.serving_messages import ArraysPiece
from naming import naming

KEY = "f" * 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "gateway" / "kernels"
    path.parent.mkdir()
    write_prepared(path, {"a": np.arange(1000, dtype=np.float32)}, KEY)
    return path


@pytest.fixture
def description(source: Path) -> ModelDescription:
    """As a gateway on another host describes it."""
    return described(
        "m.1",
        3,
        arrays_path="/another host/kernels",
        arrays_bytes=source.stat().st_size,
        arrays_key=KEY,
    )


class Gateway:
    """Answers for pieces of a file, and counts them."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        piece = self._content[request.offset : request.offset + request.size]
        return ArraysPiece(
            request.model, request.version, request.offset, len(self._content), (piece,)
        )


def nobody(_):
    raise NoAnswerError("nobody")


def test_what_lies_on_this_host_is_mapped(source, description, tmp_path):
    here = replace(description, arrays_path=str(source))
    found = mapped_arrays(here, tmp_path / "own", nobody)
    np.testing.assert_array_equal(found["a"], np.arange(1000))
    assert not (tmp_path / "own").exists()


def test_what_lies_elsewhere_is_fetched_in_pieces_once(source, description, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "PIECE_BYTES", 1500)
    gateway = Gateway(source)
    found = mapped_arrays(description, tmp_path / "own", gateway)
    np.testing.assert_array_equal(found["a"], np.arange(1000))
    assert [each.offset for each in gateway.requests] == [0, 1500, 3000]
    assert sum(each.size for each in gateway.requests) == source.stat().st_size
    again = mapped_arrays(description, tmp_path / "own", nobody)
    np.testing.assert_array_equal(again["a"], np.arange(1000))


def spoil(**changes):
    return lambda answer: answer._replace(**changes)


@pytest.mark.parametrize(
    "change",
    [
        spoil(payloads=()),
        spoil(payloads=(b"short",)),
        spoil(total=7),
        spoil(offset=4),
        spoil(version=4),
        spoil(model="other"),
    ],
)
def test_a_wrong_piece_is_refused_and_leaves_nothing(source, description, tmp_path, change):
    gateway = Gateway(source)
    with pytest.raises(ModelLoadError, match=naming("m.1 version 3", "4,208")):
        mapped_arrays(description, tmp_path / "own", lambda request: change(gateway(request)))
    assert not list((tmp_path / "own").iterdir())


def test_another_versions_content_is_refused(source, description, tmp_path):
    other = replace(description, arrays_key="0" * 64)
    with pytest.raises(ModelLoadError, match=naming("version 3 of m.1", "000000000000")):
        mapped_arrays(other, tmp_path / "own", Gateway(source))


def test_a_directory_that_cannot_be_written_is_told_of(source, description, tmp_path):
    (tmp_path / "own").write_text("a file")
    with pytest.raises(ModelLoadError, match=naming("m.1", "own", "4,208 bytes")):
        mapped_arrays(description, tmp_path / "own", Gateway(source))


def test_the_last_few_files_of_a_model_are_kept(tmp_path):
    for age, name in enumerate(["m.e", "m.d", "n.d", "m.c", "m.1.x", "m.b", "m.a"]):
        path = tmp_path / f"{name}.prepared"
        path.touch()
        os.utime(path, ns=(age, age))
    keep_newest(tmp_path, "m")
    left = {path.name.removesuffix(".prepared") for path in tmp_path.iterdir()}
    assert left == {"m.a", "m.b", "m.c", "n.d", "m.1.x"}
