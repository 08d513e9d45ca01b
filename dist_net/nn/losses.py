"""Losses: from a batch of outputs and labels to one loss per sample.

Labels are integers in [0, C), as (N,); outputs are (N, C) float32. A plan that meets another label
raises IndexRangeError when it runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dist_net.autodiff import (
    Expression,
    astype,
    constant,
    cross_entropy_of_logits,
    equal,
    gather,
    log,
    maximum,
    mean,
    square,
)
from dist_net.autodiff.arrays import integer
from dist_net.autodiff.operations.indexing import checked_indices
from dist_net.autodiff.operations.softmax import require_class_indices
from dist_net.errors import DTypeError, ShapeError

Loss = Callable[[Expression, Expression], Expression]

SMALLEST_PROBABILITY = 1e-7

__all__ = [
    "Loss",
    "cross_entropy_of_logits",
    "cross_entropy_of_probabilities",
    "mean_squared_error",
    "one_hot",
]


def cross_entropy_of_probabilities(probabilities: Expression, labels: Expression) -> Expression:
    """-log of the label's probability, or of 1e-7 if that is larger, as in Keras.

    If the network ends in a softmax, leave the softmax out and use ``cross_entropy_of_logits``,
    which needs no such bound. Raises DTypeError unless labels are integers.
    """
    require_class_indices("cross_entropy_of_probabilities", labels)
    return -log(maximum(gather(probabilities, labels), SMALLEST_PROBABILITY))


def mean_squared_error(outputs: Expression, labels: Expression) -> Expression:
    """The mean over the outputs of the squared difference from ``labels``.

    ``labels`` are targets of the outputs' shape, or integers without the last axis, which become
    one-hot. Raises ShapeError for other shapes, DTypeError for floats without the last axis.
    """
    if labels.ndim < outputs.ndim and labels.dtype.kind not in "iu":
        raise DTypeError(
            f"mean_squared_error: labels {labels.dtype}{list(labels.shape)}; expected integers, or "
            f"targets of the outputs' shape, {outputs.shape}"
        )
    targets = one_hot(labels, outputs.shape[-1]) if labels.ndim < outputs.ndim else labels
    if targets.shape != outputs.shape:
        raise ShapeError(f"mean_squared_error: outputs {outputs.shape}, targets {targets.shape}")
    return mean(square(outputs - astype(targets, outputs.dtype)), range(1, outputs.ndim))


def one_hot(labels: Expression, classes: int) -> Expression:
    """(N,) integers in [0, classes) as (N, classes) float32: 1 at the label, 0 elsewhere.

    Raises DTypeError unless they are integers.
    """
    classes = integer("one_hot: classes", classes, least=1)
    checked = checked_indices("one_hot", labels, classes)
    numbers = constant(np.arange(classes, dtype=np.intp))
    return astype(equal(checked[..., None], numbers), np.float32)
