"""Files of a model's inputs and outputs: arrays of rows as .npy or CSV, and tables of answers."""

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError
from dist_net.ground.files import written
from dist_net.nets.foreign_onnx import ForeignModel
from dist_net.nn import Model
from dist_net.nn.model import Batch

ROW_SUFFIXES = ".csv", ".npy"


def is_row_file(path: str | Path) -> bool:
    return Path(path).suffix.lower() in ROW_SUFFIXES


def read_rows(path: Path, model: Model | ForeignModel) -> Batch:
    """Return the rows of a file as inputs of ``model``, (N, *input_shape).

    A .npy file holds such an array, in any dtype whose values fit the model's; it is mapped. A line
    of CSV is a row in C order; a first line of names is skipped. Raise DatasetError.
    """
    try:
        rows = _read_csv(path) if path.suffix.lower() == ".csv" else _map(path)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{path}: {reason}; expected rows of numbers, .npy or CSV") from error
    is_flat = path.suffix.lower() == ".csv" and rows.shape[1] == prod(model.input_shape)
    if not is_flat and rows.shape[1:] != model.input_shape:
        raise DatasetError(
            f"{path}: an array of shape {rows.shape}; expected "
            f"({', '.join(map(str, ('N', *model.input_shape)))}), the inputs of the model"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        inputs = rows.astype(model.input_dtype, order="C").reshape(
            -1, *model.input_shape, copy=False
        )
    is_same = model.input_dtype.kind == "f" or np.array_equal(inputs.ravel(), rows.ravel())
    if not is_same or not np.isfinite(inputs).all():
        raise DatasetError(
            f"{path}: numbers that do not fit {model.input_dtype}; expected inputs like those that "
            f"the model was trained on"
        )
    return inputs


def _map(path: Path) -> NDArray[np.generic]:
    rows = np.lib.format.open_memmap(path, mode="r")  # unlike np.load, never a pickle or zip file
    if rows.dtype.kind not in "biuf" or rows.ndim == 0:
        raise ValueError(f"an array of shape {rows.shape} and dtype {rows.dtype}")
    return rows


def _read_csv(path: Path) -> NDArray[np.float64]:
    with path.open(encoding="utf-8-sig") as file:
        lines = [line for line in file if line.strip()]
    for given in lines, lines[1:]:
        with suppress(ValueError):  # the first line may be a header
            if given:
                return np.loadtxt(given, delimiter=",", ndmin=2)
    raise ValueError(f"{len(lines)} lines are not a CSV of numbers")


def write_rows(path: Path, rows: NDArray[np.float32]) -> None:
    """Write (N, ...) rows to a file of either kind; raise FileWriteError."""
    with written(path) as file:
        if path.suffix.lower() == ".npy":
            np.save(file, rows)
        else:
            np.savetxt(file, rows.reshape(len(rows), -1, copy=False), "%.9g", ",")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, with undecodable bytes of file names; raise FileWriteError."""
    with written(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
        csv.writer(text).writerows([columns, *rows])
        text.detach()
