"""The engine, 1 of 6: expressions, the nodes of a computation graph, of known shapes and dtypes.

An expression is an operation applied to other expressions. Nothing is computed here: a graph is a
description. ``gradients`` adds expressions to it, and ``compile`` turns it into a plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from dist_net.autodiff.arrays import Array, Call, Shape, integers
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.errors import DTypeError, GraphError, ShapeError


class Operation:
    """What a node computes: a rule for the shape, a call that computes it, and the VJP.

    Operations are compared by value: two nodes with equal operations and the same inputs are the
    same computation, which a plan makes once. An operation that draws random numbers is compared
    by identity, and makes new ones at each run.
    """

    overwrites_inputs = False
    """Whether the output may be written to the buffer of an input of its shape and dtype."""
    reads_contiguous = False
    """Whether the inputs must be C-contiguous; a plan copies those that are not, at each run."""

    @property
    def label(self) -> str:
        """What a printed plan calls it."""
        return type(self).__name__

    @property
    def can_be_computed_beforehand(self) -> bool:
        """Whether the result is known when the inputs are; not if it is compared by identity."""
        return type(self).__eq__ is not object.__eq__

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        """The shape and dtype of the result; raises ShapeError or DTypeError."""
        raise NotImplementedError

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        """The call that reads ``inputs`` and fills ``out``; the arrays are borrowed."""
        raise NotImplementedError

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        """The vector-Jacobian product: each input's cotangent, given the node's own.

        None for an input with respect to which the derivative is 0 everywhere. Only floats have
        cotangents, so an operation whose result is never one has no VJP.
        """
        raise NotImplementedError


class View(Operation):
    """An operation that computes nothing: its result is a view of its input's memory."""

    keeps_contiguous = False
    """Whether a C-contiguous input gives a C-contiguous view."""

    def view(self, array: Array) -> Array:
        """The view of ``array`` that is the result."""
        raise NotImplementedError


class SharedOperation(Operation):
    """An operation whose work the threads of a pool share.

    The result does not depend on which thread does what; on how many there are, only in the last
    digits of sums.
    """

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return self.bind_shared(inputs, out, ThreadPool())

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        """As ``bind``, for a call whose work ``pool`` shares."""
        raise NotImplementedError


@dataclass(frozen=True)
class Variable(Operation):
    """A named input, whose array is given when a plan is bound."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant(Operation):
    """A fixed value. Compared by identity, since comparing contents could take long."""

    value: Array


class Expression:
    """A node: ``operation`` applied to ``inputs``, with a result of known shape and dtype."""

    __slots__ = ("dtype", "inputs", "operation", "shape")
    __array_ufunc__ = None  # so that array * expression is left to __rmul__
    __iter__ = None  # or Python would ask for x[0], x[1], ... by itself

    def __init__(
        self,
        operation: Operation,
        inputs: tuple[Expression, ...],
        shape: Shape,
        dtype: np.dtype[np.generic],
    ) -> None:
        self.operation = operation
        self.inputs = inputs
        self.shape = shape
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the result in memory."""
        return self.size * self.dtype.itemsize

    def with_inputs(self, inputs: Iterable[Expression]) -> Expression:
        """The same operation on other inputs, of the same shapes and dtypes."""
        return Expression(self.operation, tuple(inputs), self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"<{self.operation} {self.dtype}{list(self.shape)}>"

    def __bool__(self) -> bool:
        raise GraphError(f"{self} has no truth value before it is computed; use where()")

    # Set by ``operators.py`` to the functions of the operations.
    __add__: ClassVar[BinaryOperator]
    __radd__: ClassVar[BinaryOperator]
    __sub__: ClassVar[BinaryOperator]
    __rsub__: ClassVar[BinaryOperator]
    __mul__: ClassVar[BinaryOperator]
    __rmul__: ClassVar[BinaryOperator]
    __truediv__: ClassVar[BinaryOperator]
    __rtruediv__: ClassVar[BinaryOperator]
    __matmul__: ClassVar[BinaryOperator]
    __rmatmul__: ClassVar[BinaryOperator]
    __eq__: ClassVar[BinaryOperator]  # type: ignore[assignment]
    __ne__: ClassVar[BinaryOperator]  # type: ignore[assignment]
    __neg__: ClassVar[Callable[[Expression], Expression]]
    __lt__: ClassVar[BinaryOperator]
    __le__: ClassVar[BinaryOperator]
    __gt__: ClassVar[BinaryOperator]
    __ge__: ClassVar[BinaryOperator]
    __getitem__: ClassVar[Callable[[Expression, Any], Expression]]


Operand: TypeAlias = "Expression | Array | float"
BinaryOperator: TypeAlias = "Callable[[Expression, Operand], Expression]"


def apply(operation: Operation, *inputs: Expression) -> Expression:
    """The node of ``operation`` on ``inputs``; raises ShapeError or DTypeError if they misfit."""
    shape, dtype = operation.result(*inputs)
    return Expression(operation, inputs, shape, dtype)


def variable(name: str, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Expression:
    """An input called ``name``; equal names in one graph mean the same array."""
    lengths = integers(f"variable {name!r}: shape", shape)
    if any(length < 0 for length in lengths):
        raise ShapeError(f"variable {name!r}: shape {lengths} has a negative length")
    return Expression(Variable(name), (), lengths, np.dtype(dtype))


def constant(value: Array | float, dtype: DTypeLike | None = None) -> Expression:
    """A fixed value, which is copied. A Python number is float32 unless ``dtype`` is given."""
    if dtype is None and isinstance(value, int | float) and not isinstance(value, bool):
        dtype = np.float32
    if (given := np.asarray(value)).dtype.kind not in "biuf":
        raise DTypeError(f"constant {value!r}: expected numbers, got dtype {given.dtype}")
    array = np.array(given, dtype=dtype, order="C")
    array.flags.writeable = False
    return Expression(Constant(array), (), array.shape, array.dtype)


def as_expression(value: Operand, like: Expression) -> Expression:
    """``value`` itself, or a constant of it; a bare number takes the dtype of ``like``.

    Raises DTypeError for a number that this dtype cannot hold: 0.5 as an integer, -1 as uint8.
    """
    if isinstance(value, Expression):
        return value
    if np.ndim(value) > 0:
        return constant(value)
    try:
        fits = like.dtype.kind == "f" or like.dtype.type(value) == value
    except (OverflowError, TypeError, ValueError):
        fits = False
    if not fits:
        raise DTypeError(f"{value!r} cannot be {like.dtype}; convert the expression with astype()")
    return constant(value, like.dtype)


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


def topological_order(outputs: Iterable[Expression]) -> list[Expression]:
    """Every node that ``outputs`` need, each once, inputs before users.

    It does not recurse, so Python's stack does not limit the depth of a graph.
    """
    order: list[Expression] = []
    placed: set[int] = set()
    stack = [(node, False) for node in reversed(list(outputs))]
    while stack:
        node, inputs_placed = stack.pop()
        if id(node) in placed:
            continue
        if inputs_placed:
            placed.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((each, False) for each in reversed(node.inputs) if id(each) not in placed)
    return order
