"""Rows of numbers in files: what a model is given, what it answers, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import DatasetError, FileWriteError
from dist_net.nets.row_files import read_rows, write_rows
from dist_net.nn import Dense, Flatten, Model, Rescale, Sequential

VECTORS = Model(Sequential(Dense(1)), (3,), "mse", np.float32)
PIXELS = Model(Sequential(Rescale(), Flatten(), Dense(2)), (2, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, ">f4", bool])
def test_an_array_is_read_as_the_model_takes_it(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.eye(4, 3).astype(dtype))
    np.testing.assert_array_equal(read_rows(path, VECTORS), np.eye(4, 3, dtype="f4"), strict=True)
    np.save(path, np.asfortranarray(np.arange(8).reshape(2, 2, 2).astype(np.float64)))
    expected = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    np.testing.assert_array_equal(read_rows(path, PIXELS), expected, strict=True)


@pytest.mark.parametrize("head", ["", "a,b,c,d\n", "\ufeff", "\n\n"])
def test_a_line_of_csv_is_a_row_and_a_line_of_names_is_none(head: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.CSV"
    path.write_text(f"{head}1, 2,3,4\n5,6,7,255\n\n")
    expected = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 255]]], np.uint8)
    np.testing.assert_array_equal(read_rows(path, PIXELS), expected, strict=True)


@pytest.mark.parametrize("name", ["out.npy", "out.csv"])
def test_what_is_written_can_be_read(name: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    write_rows(tmp_path / name, rows)
    np.testing.assert_array_equal(read_rows(tmp_path / name, VECTORS), rows)
    with pytest.raises(FileWriteError, match="nowhere"):
        write_rows(tmp_path / "nowhere" / name, rows)


@pytest.mark.parametrize(
    ("name", "content", "model", "words"),
    [
        ("none.csv", None, VECTORS, "No such file"),
        ("a.csv", b"", VECTORS, "0 lines"),
        ("a.csv", b"a,b,c\n", VECTORS, "1 lines"),
        ("a.csv", b"1,2,3\n4,x,6\n", VECTORS, "2 lines"),
        ("a.csv", b"1,2\n", VECTORS, r"\(1, 2\).*\(N, 3\)"),
        ("a.csv", b"1,2,nan\n", VECTORS, "float32"),
        ("a.csv", b"1,2,1e99\n", VECTORS, "float32"),
        ("a.csv", b"0,1,2,256\n", PIXELS, "uint8"),
        ("a.csv", b"0,1,2,0.5\n", PIXELS, "uint8"),
        ("a.csv", b"\xff\xfe", VECTORS, "utf-8"),
        ("a.npy", b"", VECTORS, r"a\.npy.*CSV"),
        ("a.npy", b"1,2,3", VECTORS, r"a\.npy.*CSV"),
    ],
)
def test_a_file_of_something_else_is_refused(
    name: str, content: bytes | None, model: Model, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        read_rows(tmp_path / name, model)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 4)), np.zeros(3), np.array([{}]), np.array(["a"]), np.array(1.0)]
)
def test_an_array_of_something_else_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=r"a\.npy"):
        read_rows(tmp_path / "a.npy", VECTORS)
