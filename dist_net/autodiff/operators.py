"""Sets the Python operators of expressions to the functions of the operations.

This cannot be in ``expression.py``, because operations are built on expressions.
"""

from __future__ import annotations

from collections.abc import Callable

from dist_net.autodiff.expression import Expression, Operand
from dist_net.autodiff.operations.elementwise import (
    add,
    divide,
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    multiply,
    negative,
    subtract,
)
from dist_net.autodiff.operations.matmul import matmul
from dist_net.autodiff.operations.selection import logical_not
from dist_net.autodiff.operations.slicing import getitem

Binary = Callable[[Operand, Operand], Expression]


def reflected(function: Binary) -> Binary:
    """Return the function with its operands exchanged, as ``2 - x`` needs it."""

    def exchanged(second: Operand, first: Operand) -> Expression:
        return function(first, second)

    return exchanged


def not_equal(first: Operand, second: Operand) -> Expression:
    """first != second, as bool."""
    return logical_not(equal(first, second))


Expression.__add__, Expression.__radd__ = add, reflected(add)
Expression.__sub__, Expression.__rsub__ = subtract, reflected(subtract)
Expression.__mul__, Expression.__rmul__ = multiply, reflected(multiply)
Expression.__truediv__, Expression.__rtruediv__ = divide, reflected(divide)
Expression.__matmul__, Expression.__rmatmul__ = matmul, reflected(matmul)
Expression.__neg__ = negative
Expression.__lt__, Expression.__le__ = less, less_equal
Expression.__gt__, Expression.__ge__ = greater, greater_equal
Expression.__eq__, Expression.__ne__ = equal, not_equal
Expression.__getitem__ = getitem
