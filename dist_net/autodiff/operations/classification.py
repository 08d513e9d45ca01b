"""Functions of scores of classes: the logarithm of softmax, and cross entropy.

They subtract the maximum of each row first, so that no exponential overflows and at least one
is 1. The result does not depend on the maximum, so it is constant in the gradient.
"""

import math

import numpy as np

from dist_net.autodiff.expression import Expression, apply, constant
from dist_net.autodiff.operations.elementwise import add, exp, log
from dist_net.autodiff.operations.indexing import Take, checked_indices
from dist_net.autodiff.operations.reduction import mean, sum
from dist_net.autodiff.operations.selection import max, stop_gradient
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import DTypeError, ShapeError


def scores_of_labels(name: str, scores: Expression, labels: Expression) -> Expression:
    """Return the score of each label: (..., C) and (...) integers in [0, C) to (...).

    For another label, the plan raises ``IndexRangeError``, which uses ``name``. Raise
    ``ShapeError`` or ``DTypeError`` for labels that are no class indices.
    """
    expected = scores.shape[:-1]
    if labels.shape != expected:
        remedy = "another network, such as one with Flatten before Dense"
        if labels.size == math.prod(expected):
            remedy = f"targets.reshape({', '.join(map(str, (-1, *expected[1:])))})"
        if labels.shape == scores.shape and labels.shape[-1] > 1:
            remedy = f"targets.argmax({len(expected)})"
        raise ShapeError(
            f"{name}: targets of shape {labels.shape[1:]} each for outputs of {scores.shape[1:]}; "
            f"expected class indices, integers of shape {expected[1:]} each: use {remedy}"
        )
    if labels.dtype.kind not in "iu":
        raise DTypeError(
            f"{name}: targets of dtype {labels.dtype}; expected integer class indices; to predict "
            f"numbers use mean_squared_error"
        )
    starts = reshape(constant(np.arange(labels.size) * scores.shape[-1]), labels.shape)
    places = add(starts, checked_indices(name, labels, scores.shape[-1]))
    return apply(Take(0), reshape(scores, (scores.size,)), places)


def shifted_to_zero(logits: Expression) -> Expression:
    """Return the logits minus their maximum along the last axis."""
    return logits - stop_gradient(max(logits, -1, keepdims=True))


def log_softmax(logits: Expression) -> Expression:
    """Return the logarithm of softmax, accurate even if a probability would round to 0."""
    shifted = shifted_to_zero(logits)
    return shifted - log(sum(exp(shifted), -1, keepdims=True))


def cross_entropy_of_logits(logits: Expression, labels: Expression) -> Expression:
    """Return -log softmax(logits)[label] of each row: (N, C) and (N,) integers to (N,).

    For (N, ..., C) and (N, ...), return the mean over each sample's positions. Raise ``DTypeError``
    unless labels are integers, ``ShapeError`` for other shapes.
    """
    shifted = shifted_to_zero(logits)
    scores = scores_of_labels("cross_entropy_of_logits", shifted, labels)
    return mean(log(sum(exp(shifted), -1)) - scores, range(1, labels.ndim))
