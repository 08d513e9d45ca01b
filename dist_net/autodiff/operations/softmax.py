"""Softmax and its logarithm, and the loss of classifiers, composed of simpler operations.

The largest of each row is subtracted first, so that no exponential overflows and at least one is 1.
That does not change the result, and so it counts as constant in the gradient.
"""

from __future__ import annotations

from dist_net.autodiff.expression import Expression
from dist_net.autodiff.operations.elementwise import exp, log
from dist_net.autodiff.operations.indexing import gather
from dist_net.autodiff.operations.reduction import sum
from dist_net.autodiff.operations.selection import max, stop_gradient
from dist_net.errors import DTypeError


def shifted_to_zero(logits: Expression) -> Expression:
    """The logits minus the largest along the last axis."""
    return logits - stop_gradient(max(logits, -1, keepdims=True))


def softmax(logits: Expression) -> Expression:
    """Probabilities along the last axis, in proportion to exp(logits)."""
    exponentials = exp(shifted_to_zero(logits))
    return exponentials / sum(exponentials, -1, keepdims=True)


def log_softmax(logits: Expression) -> Expression:
    """The logarithm of softmax, exact where a probability would round to 0."""
    shifted = shifted_to_zero(logits)
    return shifted - log(sum(exp(shifted), -1, keepdims=True))


def require_class_indices(name: str, labels: Expression) -> None:
    """Raises DTypeError, for the loss ``name``, unless the labels are integers."""
    if labels.dtype.kind not in "iu":
        raise DTypeError(
            f"{name}: targets of dtype {labels.dtype}; expected integers, each the index of a "
            f"class; to predict numbers use mean_squared_error"
        )


def cross_entropy_of_logits(logits: Expression, labels: Expression) -> Expression:
    """-log softmax(logits)[label] of each row: (N, C) and (N,) integers give (N,).

    Raises DTypeError unless labels are integers.
    """
    require_class_indices("cross_entropy_of_logits", labels)
    shifted = shifted_to_zero(logits)
    return log(sum(exp(shifted), -1)) - gather(shifted, labels)
