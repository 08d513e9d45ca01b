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
from dist_net.errors import ParameterError, ShapeError
from dist_net.spelling import suggestion

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
    one-hot. Raises ShapeError for other shapes.
    """
    is_class = labels.ndim < outputs.ndim and labels.dtype.kind in "iu"
    targets = one_hot(labels, outputs.shape[-1]) if is_class else labels
    if targets.shape != outputs.shape:
        raise ShapeError(
            f"mean_squared_error: targets of shape {of_samples(targets)} and dtype {targets.dtype} "
            f"for outputs of shape {of_samples(outputs)}; expected classes, integers of shape "
            f"(N,), or the outputs' shape{_reshaped(targets, outputs)}"
        )
    return mean(square(outputs - astype(targets, outputs.dtype)), range(1, outputs.ndim))


def one_hot(labels: Expression, classes: int) -> Expression:
    """(N,) integers in [0, classes) as (N, classes) float32: 1 at the label, 0 elsewhere.

    Raises DTypeError unless they are integers.
    """
    classes = integer("one_hot: classes", classes, least=1)
    checked = checked_indices("one_hot", labels, classes)
    numbers = constant(np.arange(classes, dtype=np.intp))
    return astype(equal(checked[..., None], numbers), np.float32)


def of_samples(batch: Expression) -> str:
    """Return the shape of a batch of N samples, for messages: ``(N, 3)``."""
    return f"({', '.join(['N', *map(str, batch.shape[1:])])}{',' * (batch.ndim == 1)})"


def _reshaped(targets: Expression, outputs: Expression) -> str:
    """Return how to give targets the shape of the outputs; "" where that is impossible."""
    shape = of_samples(outputs).replace("N", "-1")
    return f": targets.reshape{shape}" if targets.size == outputs.size else ""


LOSSES: dict[str, Loss] = {
    "cross_entropy_of_logits": cross_entropy_of_logits,
    "cross_entropy_of_probabilities": cross_entropy_of_probabilities,
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
    "sparse_categorical_crossentropy": cross_entropy_of_probabilities,  # Keras's default
}


def mean_loss(loss: Loss, outputs: Expression, targets: Expression) -> Expression:
    """Return the mean of ``loss`` over a batch.

    Raises ShapeError unless it has one value for each sample: if outputs (N, 1) and targets (N,)
    broadcast to (N, N), their mean would train a model that means nothing.
    """
    losses = loss(outputs, targets)
    if not isinstance(losses, Expression):
        raise ShapeError(f"the loss returned {losses!r:.80}; expected an expression of shape (N,)")
    if losses.shape != outputs.shape[:1]:
        raise ShapeError(
            f"the loss is of shape {losses.shape} for a batch of {outputs.shape[0]} samples, with "
            f"outputs of shape {of_samples(outputs)} and targets of shape {of_samples(targets)}; "
            f"expected a value for each sample, (N,): take the mean over the other axes, or give "
            f"targets the outputs' shape{_reshaped(targets, outputs)}"
        )
    return mean(losses)


def loss_named(loss: Loss | str) -> Loss:
    """Return the loss of a name in ``LOSSES``, or ``loss`` itself; raise ParameterError."""
    if callable(loss):
        return loss
    if str(loss) not in LOSSES:
        raise ParameterError(f"there is no loss {loss!r}; {suggestion(str(loss), LOSSES)}")
    return LOSSES[str(loss)]
