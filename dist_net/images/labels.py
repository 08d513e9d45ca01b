"""The names of a net's classes, predictions by name, and the calibration of probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ModelFileError, SettingError


def read_labels(path: Path, classes: int | None = None) -> tuple[str, ...]:
    """Return a file's names of ``classes``, one per line. Raise ModelFileError."""
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
    """Raise ModelFileError unless each class has one label of Unicode's characters."""
    if any(0xD800 <= ord(each) < 0xE000 for each in "".join(labels)):
        raise ModelFileError("a label has half a surrogate pair; expected Unicode text")
    if len(labels) != classes:
        raise ModelFileError(
            f"{len(labels):,} labels for a net of {classes:,} classes; expected one per class"
        )


@dataclass(frozen=True)
class Prediction:
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


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """The divisor of the logits, and the probability below which the answer is "unknown".

    ``precision`` is the share of correct answers for which the threshold was chosen. ``proven`` has
    pairs, rising: a threshold, and the precision that images prove for it. Early runs have none.
    """

    temperature: float
    threshold: float
    precision: float
    proven: Sequence[tuple[float, float]] = ()

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for values out of range, as in a damaged file."""
        is_temperature = MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        shares = self.threshold, *(share for pair in self.proven for share in pair)
        are_shares = all(0 <= share <= 1 for share in shares)
        if not (is_temperature and are_shares and 0 < self.precision <= 1):
            raise ValueError(f"{self}: no calibration")

    @property
    def is_proven(self) -> bool:
        """Whether the images prove that the answers reach ``precision``."""
        return lowest_threshold(self.proven, self.precision) is not None

    def promising(self, precision: float) -> Self:
        """Return the calibration of another precision; raise SettingError if it is not proven."""
        if not 0 < precision <= 1:
            raise SettingError(f"precision={precision:g}: expected above 0, at most 1")
        if not self.proven:
            raise SettingError(
                f"precision={precision:g}: the run is of an earlier release and has one threshold; "
                f"expected none, or a run that was resumed: dist-net train --resume --run-dir RUN"
            )
        threshold = lowest_threshold(self.proven, precision)
        if threshold is None:
            raise SettingError(
                f"precision={precision:g}: the images that the run was judged on prove at most "
                f"{self.proven[-1][1]:.3f}, however few of them are answered; expected at most "
                f"that, or more images"
            )
        return replace(self, threshold=threshold, precision=precision)


def lowest_threshold(proven: Sequence[tuple[float, float]], precision: float) -> float | None:
    """Return the first threshold that proves ``precision``; None if none does."""
    return next((threshold for threshold, proves in proven if proves >= precision), None)
