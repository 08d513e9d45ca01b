"""The names of classes: a line each, in the order of a net's outputs.

``imagenet_labels.txt`` holds the short names of ImageNet's 1000 classes in the order of Darknet's
nets, which is not that of ImageNet's own list: kit fox is the first. Two names stand for two
classes each, a bird and a machine (crane), a bathing suit and tights (maillot).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from dist_net.errors import LabelsError


@cache
def imagenet_labels() -> tuple[str, ...]:
    """ImageNet's 1000 classes by their short names, in the order of the published classifiers."""
    packaged = resources.files("dist_net.darknet").joinpath("imagenet_labels.txt")
    return tuple(packaged.read_text(encoding="utf-8").splitlines())


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """The names in the file at ``path``, a line each, for a net of so many classes.

    Empty lines at the end do not count. Raises LabelsError for a file that cannot be read, is no
    UTF-8 text, has a line without a name, or has not as many names as there are classes.
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
