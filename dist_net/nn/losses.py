"""Losses: map a batch of outputs and labels to one loss per sample.

Labels are ``(N,)`` integers in [0, C); outputs are ``(N, C) float32``. A label outside the range
raises ``IndexRangeError`` when the plan runs.
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
from dist_net.autodiff.operations.classification import checked_indices, require_class_indices
from dist_net.errors import ParameterError, ShapeError
from dist_net.spelling import suggestion

Loss = Callable[[Expression, Expression], Expression]

MIN_PROBABILITY = 1e-7


def cross_entropy_of_probabilities(probabilities: Expression, labels: Expression) -> Expression:
    """Return -log(max(p, 1e-7)) for the label's probability p, as in Keras.

    If the network ends in a softmax, remove it and use ``cross_entropy_of_logits`` instead, which
    needs no such bound. Raise ``DTypeError`` unless labels are integers.
    """
    require_class_indices("cross_entropy_of_probabilities", probabilities, labels)
    return -log(maximum(gather(probabilities, labels), MIN_PROBABILITY))


def mean_squared_error(outputs: Expression, labels: Expression) -> Expression:
    """Return the mean squared difference between the outputs and ``labels``.

    ``labels`` have the shape of the outputs, or are integers without the last axis and become
    one-hot. Raise ``ShapeError`` for other shapes.
    """
    is_class = labels.ndim < outputs.ndim and labels.dtype.kind in "iu" and outputs.shape[-1] > 1
    targets = one_hot(labels, outputs.shape[-1]) if is_class else labels
    if targets.shape != outputs.shape:
        raise ShapeError(
            f"mean_squared_error: targets of shape {of_samples(targets)} and dtype {targets.dtype} "
            f"for outputs of shape {of_samples(outputs)}; expected the outputs' shape"
            f"{_reshaped(targets, outputs) or ', or class indices, integers of shape (N,)'}"
        )
    return mean(square(outputs - astype(targets, outputs.dtype)), range(1, outputs.ndim))


def one_hot(labels: Expression, classes: int) -> Expression:
    """Encode ``(N,)`` integers in [0, classes) as ``(N, classes) float32``: 1 at the label, else 0.

    Raise ``DTypeError`` unless labels are integers.
    """
    classes = integer("one_hot: classes", classes, least=1)
    checked = checked_indices("one_hot", labels, classes)
    numbers = constant(np.arange(classes, dtype=np.intp))
    return astype(equal(checked[..., None], numbers), np.float32)


def of_samples(batch: Expression) -> str:
    """Return the shape of a batch of N samples, for messages: ``(N, 3)``."""
    return f"({', '.join(['N', *map(str, batch.shape[1:])])}{',' * (batch.ndim == 1)})"


def _reshaped(targets: Expression, outputs: Expression) -> str:
    """Return the ``reshape`` call from the targets' shape to the outputs'; "" if impossible."""
    shape = of_samples(outputs).replace("N", "-1")
    return f": targets.reshape{shape}" if targets.size == outputs.size else ""


LOSSES: dict[str, Loss] = {
    "cross_entropy_of_logits": cross_entropy_of_logits,
    "cross_entropy_of_probabilities": cross_entropy_of_probabilities,
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
    "sparse_categorical_crossentropy": cross_entropy_of_probabilities,  # Keras's default
}


CLASS_LOSSES = cross_entropy_of_logits, cross_entropy_of_probabilities


def mean_loss(loss: Loss, outputs: Expression, targets: Expression) -> Expression:
    """Return the mean of ``loss`` over a batch.

    Raise ``ShapeError`` unless it has one value per sample: outputs (N, 1) and targets (N,) would
    broadcast to (N, N), and training on their mean is meaningless.
    """
    losses = loss(outputs, targets)
    if not isinstance(losses, Expression):
        raise ShapeError(f"the loss returned {losses!r:.80}; expected an expression of shape (N,)")
    if losses.shape != outputs.shape[:1]:
        raise ShapeError(
            f"the loss has shape {losses.shape} for a batch of {outputs.shape[0]} samples, with "
            f"outputs of shape {of_samples(outputs)} and targets of shape {of_samples(targets)}; "
            f"expected one value per sample, (N,): take the mean over the other axes, or reshape "
            f"targets to the outputs' shape{_reshaped(targets, outputs)}"
        )
    return mean(losses)


def loss_named(loss: Loss | str) -> Loss:
    """Return the loss of a name in ``LOSSES``, or ``loss`` itself; raise ParameterError."""
    if callable(loss):
        return loss
    if str(loss) not in LOSSES:
        raise ParameterError(f"there is no loss {loss!r}; {suggestion(str(loss), LOSSES)}")
    return LOSSES[str(loss)]
