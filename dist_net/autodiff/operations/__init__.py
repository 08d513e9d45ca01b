"""The operations, one family a module, and Python's operators of expressions.

``expression.py`` cannot set the operators, because operations are built on expressions.
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
from dist_net.autodiff.operations.matmul import matmul as matrix_product
from dist_net.autodiff.operations.records import field
from dist_net.autodiff.operations.selection import logical_not
from dist_net.autodiff.operations.shaping import getitem

Binary = Callable[[Operand, Operand], Expression]


def operator(function: Binary) -> Binary:
    """Return a method that calls ``function``, which need not be a plain function itself."""

    def method(first: Operand, second: Operand) -> Expression:
        return function(first, second)

    return method


def reflected(function: Binary) -> Binary:
    """Return the method with exchanged operands, as ``2 - x`` needs it."""

    def method(second: Operand, first: Operand) -> Expression:
        return function(first, second)

    return method


def not_equal(first: Operand, second: Operand) -> Expression:
    """Return first != second, as bool."""
    return logical_not(equal(first, second))


Expression.__add__, Expression.__radd__ = operator(add), reflected(add)
Expression.__sub__, Expression.__rsub__ = operator(subtract), reflected(subtract)
Expression.__mul__, Expression.__rmul__ = operator(multiply), reflected(multiply)
Expression.__truediv__, Expression.__rtruediv__ = operator(divide), reflected(divide)
Expression.__matmul__, Expression.__rmatmul__ = operator(matrix_product), reflected(matrix_product)
Expression.__neg__ = lambda x: negative(x)
Expression.__lt__, Expression.__le__ = operator(less), operator(less_equal)
Expression.__gt__, Expression.__ge__ = operator(greater), operator(greater_equal)
Expression.__eq__, Expression.__ne__ = operator(equal), not_equal
Expression.__getitem__ = lambda x, index: (field if isinstance(index, str) else getitem)(x, index)
