"""From probabilities to named classes, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """A class that a picture may show."""

    index: int
    label: str
    probability: float


def likeliest(probabilities: NDArray[np.float32], top: int) -> NDArray[np.intp]:
    """The indices of the ``top`` classes, likeliest first, of equal ones the first; all, if fewer.

    ``probabilities`` is (..., classes).
    """
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :top]


def predictions_of(
    probabilities: NDArray[np.float32], labels: Sequence[str], top: int
) -> list[Prediction]:
    """The ``top`` likeliest classes of one row, (classes,).

    A class without a label is called by its number.
    """
    return [
        Prediction(
            index, labels[index] if index < len(labels) else str(index), float(probabilities[index])
        )
        for index in likeliest(probabilities, top).tolist()
    ]
