"""What operations on several inputs agree on: one shape, one dtype, numbers as constants."""

from __future__ import annotations

import numpy as np

from dist_net.autodiff.arrays import Shape
from dist_net.autodiff.expression import Expression, Operand, as_expression
from dist_net.errors import DTypeError, ShapeError


def broadcast_shape(name: str, *inputs: Expression) -> Shape:
    """The common shape of ``inputs`` under NumPy's broadcasting; raises ShapeError."""
    try:
        return np.broadcast_shapes(*(each.shape for each in inputs))
    except ValueError:
        shapes = " and ".join(str(each.shape) for each in inputs)
        raise ShapeError(
            f"{name}: shapes {shapes} do not broadcast; expected equal lengths, or 1, "
            f"on every axis counted from the last"
        ) from None


def same_dtype(name: str, *inputs: Expression) -> np.dtype[np.generic]:
    """The one dtype of ``inputs``; raises DTypeError. Nothing is promoted silently."""
    if any(each.dtype != inputs[0].dtype for each in inputs):
        dtypes = " and ".join(str(each.dtype) for each in inputs)
        raise DTypeError(f"{name}: dtypes {dtypes} differ; convert one of them with astype()")
    return inputs[0].dtype


def operands(first: Operand, second: Operand) -> tuple[Expression, Expression]:
    """Both as expressions; a bare number takes the other's dtype."""
    if isinstance(first, Expression):
        return first, as_expression(second, first)
    if isinstance(second, Expression):
        return as_expression(first, second), second
    raise DTypeError(
        f"expected an expression among {first!r} and {second!r}; wrap one of them in constant()"
    )
