"""The names of a net's classes, and predictions by name, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import LabelsError


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """The names in a text file, one on each line, for a net of this many classes.

    Empty lines at the end do not count. Raises LabelsError for a file that cannot be read, is not
    UTF-8, has an empty line, or has another number of names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except OSError as error:
        raise LabelsError(
            f"labels {path}: {error.strerror}; expected a text file of a name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"labels {path}: byte {error.start} is not UTF-8; expected a text file of a name a line"
        ) from error
    names = tuple(line.strip() for line in text.split("\n")) if text else ()
    if "" in names:
        raise LabelsError(
            f"labels {path}: line {names.index('') + 1} is empty; expected a name in each line"
        )
    if len(names) != classes:
        shorten = f"; the first ones: head -n {classes} {path}" if len(names) > classes else ""
        raise LabelsError(
            f"labels {path}: {len(names):,} names for a net of {classes:,} classes; expected one "
            f"for each{shorten}"
        )
    return names


def require_labels(labels: Sequence[str], classes: int) -> None:
    """Raises LabelsError unless there is one label for each class."""
    if len(labels) != classes:
        raise LabelsError(
            f"{len(labels):,} labels for a net of {classes:,} classes; expected one for each"
        )


@dataclass(frozen=True)
class Prediction:
    """A class that an image may show, and how probable that is."""

    index: int
    label: str
    probability: float


def is_unknown(predictions: Sequence[Prediction], unknown_below: float) -> bool:
    """Whether the likeliest class, which comes first, is less probable than can be relied on."""
    return not predictions[0].probability >= unknown_below  # true of NaN too


def likeliest(probabilities: NDArray[np.float32], top: int) -> NDArray[np.intp]:
    """The indices of the ``top`` classes, likeliest first; of equal ones, the lower index first.

    ``probabilities`` is (..., classes).
    """
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :top]


def top_predictions(
    probabilities: NDArray[np.float32], labels: Sequence[str], top: int
) -> list[Prediction]:
    """The ``top`` likeliest classes of one row, (classes,).

    A class without a label is named by its index.
    """
    return [
        Prediction(
            index, labels[index] if index < len(labels) else str(index), float(probabilities[index])
        )
        for index in likeliest(probabilities, top).tolist()
    ]
