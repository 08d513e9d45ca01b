"""The operations, one family a module, and Python's operators of expressions.

``expression.py`` cannot set the operators, because operations are built on expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dist_net.autodiff.expression import Expression, Operand
from dist_net.autodiff.operations.elementwise import (
    absolute,
    add,
    astype,
    clip,
    divide,
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    logical_not,
    multiply,
    negative,
    power,
    subtract,
)
from dist_net.autodiff.operations.indexing import getitem, take
from dist_net.autodiff.operations.matmul import matmul as matrix_product
from dist_net.autodiff.operations.reduction import cumsum, mean, sum
from dist_net.autodiff.operations.selection import argmax, argmin, max, min
from dist_net.autodiff.operations.shaping import reshape, transpose

OfOperands = Callable[[Operand, Operand], Expression]


def operator(function: OfOperands) -> OfOperands:
    """Return a method that calls ``function``, which need not be a plain function itself."""

    def method(first: Operand, second: Operand) -> Expression:
        return function(first, second)

    return method


def reflected(function: OfOperands) -> OfOperands:
    """Return the method with exchanged operands, as ``2 - x`` needs it."""

    def method(second: Operand, first: Operand) -> Expression:
        return function(first, second)

    return method


def spread(function: Callable[[Expression, Any], Expression]) -> Callable[..., Expression]:
    """Return a method that takes a sequence of integers, or several integers as arguments."""

    def method(x: Expression, *integers: Any) -> Expression:
        is_sequence = len(integers) == 1 and isinstance(integers[0], Sequence)
        return function(x, integers[0] if is_sequence else integers)

    return method


def not_equal(first: Operand, second: Operand) -> Expression:
    """Return first != second, as bool."""
    return logical_not(equal(first, second))


Expression.__add__, Expression.__radd__ = operator(add), reflected(add)
Expression.__sub__, Expression.__rsub__ = operator(subtract), reflected(subtract)
Expression.__mul__, Expression.__rmul__ = operator(multiply), reflected(multiply)
Expression.__truediv__, Expression.__rtruediv__ = operator(divide), reflected(divide)
Expression.__matmul__, Expression.__rmatmul__ = operator(matrix_product), reflected(matrix_product)
Expression.__pow__, Expression.__rpow__ = operator(power), reflected(power)
Expression.__neg__, Expression.__abs__ = lambda x: negative(x), lambda x: absolute(x)
Expression.__lt__, Expression.__le__ = operator(less), operator(less_equal)
Expression.__gt__, Expression.__ge__ = operator(greater), operator(greater_equal)
Expression.__eq__, Expression.__ne__ = operator(equal), not_equal
Expression.__getitem__ = getitem
Expression.argmax, Expression.argmin, Expression.max, Expression.min = argmax, argmin, max, min
Expression.sum, Expression.mean, Expression.cumsum = sum, mean, cumsum
Expression.astype, Expression.clip, Expression.take = astype, clip, take
Expression.reshape = spread(reshape)
Expression.transpose = spread(lambda x, axes: transpose(x, axes or None))
