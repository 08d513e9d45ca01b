"""The names of a net's classes, and predictions by name, the likeliest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ModelFileError


def read_labels(path: Path, classes: int | None = None) -> tuple[str, ...]:
    """Return a file's lines but empty last ones, names of ``classes``. Raise ModelFileError."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
        raise ModelFileError(f"labels {path}: {found}; expected one name per line") from error
    names = tuple(line.strip() for line in text.split("\n")) if text else ()
    if "" in names:
        raise ModelFileError(
            f"labels {path}: line {names.index('') + 1} is empty; expected one name per line"
        )
    if classes is not None and len(names) != classes:
        shorten = f". To keep the first: head -n {classes} {path}" if len(names) > classes else ""
        raise ModelFileError(
            f"labels {path}: {len(names):,} names for a net of {classes:,} classes; expected one "
            f"per class{shorten}"
        )
    return names


def require_labels(labels: Sequence[str], classes: int) -> None:
    """Raise ModelFileError unless there is one label per class, of Unicode's characters."""
    if any(0xD800 <= ord(each) < 0xE000 for each in "".join(labels)):
        raise ModelFileError("a label has half a surrogate pair; expected Unicode text")
    if len(labels) != classes:
        raise ModelFileError(
            f"{len(labels):,} labels for a net of {classes:,} classes; expected one per class"
        )


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    index: int
    label: str
    probability: float


def is_unknown(predictions: Sequence[Prediction], unknown_below: float) -> bool:
    """Return whether the likeliest class, the first, is less probable than ``unknown_below``."""
    return not predictions[0].probability >= unknown_below  # true of NaN too


def likeliest(probabilities: NDArray[np.float32], top: int) -> NDArray[np.intp]:
    """Return the indices of the ``top`` of (..., classes), likeliest first, then by index."""
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :top]


def top_predictions(
    probabilities: NDArray[np.float32], labels: Sequence[str], top: int
) -> list[Prediction]:
    """Return a row's likeliest classes; one without a label is named by its index."""
    return predictions_of(probabilities, labels, likeliest(probabilities, top))


def predictions_of(
    probabilities: NDArray[np.float32], labels: Sequence[str], classes: NDArray[np.intp]
) -> list[Prediction]:
    """Return the predictions of some classes of a row, in their order."""
    values = probabilities[classes].tolist()
    return [
        Prediction(index, labels[index] if index < len(labels) else str(index), value)
        for index, value in zip(classes.tolist(), values, strict=True)
    ]
