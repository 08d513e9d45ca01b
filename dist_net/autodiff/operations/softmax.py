"""Softmax, its logarithm and the cross entropy, composed of simpler operations.

The maximum of each row is subtracted first, so that no exponential overflows and at least one is 1.
The result does not depend on the subtracted value, which is therefore constant in the gradient.
"""

from __future__ import annotations

from dist_net.autodiff.expression import Expression
from dist_net.autodiff.operations.elementwise import exp, log
from dist_net.autodiff.operations.indexing import gather
from dist_net.autodiff.operations.reduction import sum
from dist_net.autodiff.operations.selection import max, stop_gradient
from dist_net.errors import DTypeError


def shifted_to_zero(logits: Expression) -> Expression:
    """Return the logits minus their maximum along the last axis."""
    return logits - stop_gradient(max(logits, -1, keepdims=True))


def softmax(logits: Expression) -> Expression:
    """Return probabilities along the last axis, proportional to exp(logits)."""
    exponentials = exp(shifted_to_zero(logits))
    return exponentials / sum(exponentials, -1, keepdims=True)


def log_softmax(logits: Expression) -> Expression:
    """Return the logarithm of softmax, accurate even if a probability would round to 0."""
    shifted = shifted_to_zero(logits)
    return shifted - log(sum(exp(shifted), -1, keepdims=True))


def require_class_indices(name: str, labels: Expression) -> None:
    """Raise ``DTypeError`` unless the labels of the loss ``name`` are integers."""
    if labels.dtype.kind not in "iu":
        raise DTypeError(
            f"{name}: targets of dtype {labels.dtype}; expected integer class indices; to predict "
            f"numbers use mean_squared_error"
        )


def cross_entropy_of_logits(logits: Expression, labels: Expression) -> Expression:
    """Return -log softmax(logits)[label] of each row: (N, C) and (N,) integers to (N,).

    Raise ``DTypeError`` unless labels are integers.
    """
    require_class_indices("cross_entropy_of_logits", labels)
    shifted = shifted_to_zero(logits)
    return log(sum(exp(shifted), -1)) - gather(shifted, labels)
