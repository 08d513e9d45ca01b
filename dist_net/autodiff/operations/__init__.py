"""The operations, one family a module, and Python's operators of expressions.

``expression.py`` cannot set the operators, because operations are built on expressions.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dist_net.autodiff.expression import Expression, Operand
from dist_net.autodiff.operations import (
    elementwise,
    indexing,
    matmul,
    records,
    reduction,
    selection,
    shaping,
)

OfOperands = Callable[[Operand, Operand], Expression]


def operator(function: OfOperands) -> OfOperands:
    """Return a method that calls ``function``, which need not be a plain function itself."""
    return lambda first, second: function(first, second)


def both(function: OfOperands) -> tuple[OfOperands, OfOperands]:
    """Return that method, and the one with exchanged operands, as ``2 - x`` needs it."""
    return operator(function), lambda second, first: function(first, second)


def spread(function: Callable[[Expression, Any], Expression]) -> Callable[..., Expression]:
    """Return a method that takes a sequence of integers, or several integers as arguments."""

    def method(x: Expression, *integers: Any) -> Expression:
        is_sequence = len(integers) == 1 and isinstance(integers[0], Sequence)
        return function(x, integers[0] if is_sequence else integers)

    return method


Expression.__add__, Expression.__radd__ = both(elementwise.add)
Expression.__sub__, Expression.__rsub__ = both(elementwise.subtract)
Expression.__mul__, Expression.__rmul__ = both(elementwise.multiply)
Expression.__truediv__, Expression.__rtruediv__ = both(elementwise.divide)
Expression.__matmul__, Expression.__rmatmul__ = both(matmul.matmul)
Expression.__pow__, Expression.__rpow__ = both(elementwise.power)
Expression.__neg__ = lambda x: elementwise.negative(x)
Expression.__and__ = operator(elementwise.logical_and)
Expression.__or__ = operator(elementwise.logical_or)
Expression.__invert__ = lambda x: elementwise.logical_not(x)
Expression.__abs__ = lambda x: elementwise.absolute(x)
Expression.__lt__, Expression.__le__ = operator(elementwise.less), operator(elementwise.less_equal)
Expression.__gt__ = operator(elementwise.greater)
Expression.__ge__ = operator(elementwise.greater_equal)
Expression.__eq__ = operator(elementwise.equal)
Expression.__ne__ = lambda first, second: elementwise.logical_not(first == second)
Expression.__getitem__ = lambda x, index: (
    records.field(x, index) if isinstance(index, str) else indexing.getitem(x, index)
)
Expression.take = indexing.take
Expression.argmax, Expression.argmin = selection.argmax, selection.argmin
Expression.max, Expression.min = selection.max, selection.min
Expression.sum, Expression.mean = reduction.sum, reduction.mean
Expression.cumsum = reduction.cumsum
Expression.astype, Expression.clip = elementwise.astype, elementwise.clip
Expression.reshape = spread(shaping.reshape)
Expression.transpose = spread(lambda x, axes: shaping.transpose(x, axes or None))
