"""The engine, 1 of 5: expressions, the nodes of a computation graph with known shapes and dtypes.

An expression is an operation applied to other expressions. A graph is only a description:
``gradients`` adds expressions to it, and ``compile`` turns it into a plan, which computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from dist_net.autodiff.arrays import Array, Call, Shape, integers
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.errors import DTypeError, GraphError, ShapeError


class Operation:
    """The computation of a node: its shape rule, the call that computes it, and its VJP.

    Operations are compared by value: a plan computes two nodes with equal operations and the same
    inputs once. Operations that draw random numbers are compared by identity, and draw anew.
    """

    overwrites_inputs = False
    """Whether the output may overwrite the buffer of an input with its shape and dtype."""
    reads_contiguous = False
    """Whether inputs must be C-contiguous; a plan copies other inputs at each run."""

    @property
    def label(self) -> str:
        """The name in a printed plan."""
        return type(self).__name__

    @property
    def can_be_computed_beforehand(self) -> bool:
        """Whether constant inputs make the result constant; false if compared by identity."""
        return type(self).__eq__ is not object.__eq__

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        """Return shape and dtype, the first input's by default; raise ShapeError, DTypeError."""
        return inputs[0].shape, inputs[0].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        """Return the call that reads ``inputs`` and fills ``out``; the arrays are borrowed."""
        raise NotImplementedError

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        """Return the vector-Jacobian product: each input's cotangent, given the node's own.

        None for an input if the derivative with respect to it is 0 everywhere. Only floats have
        cotangents, so an operation whose result is never a float has no VJP.
        """
        raise NotImplementedError


class View(Operation):
    """An operation whose result is a view of its input's memory, without computation."""

    keeps_contiguous = False
    """Whether the view of a C-contiguous input is C-contiguous."""

    def view(self, array: Array) -> Array:
        """Return the result, a view of ``array``; all of it by default."""
        return array


class SharedOperation(Operation):
    """An operation whose work the threads of a pool share.

    The result does not depend on the assignment of work to threads. The number of threads affects
    only the last digits of large products and of the gradients of filters.
    """

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return self.bind_shared(inputs, out, ThreadPool())

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        """Return a call as ``bind`` does, whose work ``pool`` shares."""
        raise NotImplementedError


@dataclass(frozen=True)
class Variable(Operation):
    """A named input; binding a plan sets its array."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant(Operation):
    """A fixed value. Compared by identity, because comparing contents may be slow."""

    value: Array


@dataclass(frozen=True, eq=False)
class Uniform(Operation):
    """Numbers in [0, 1). Compared by identity: no two draws are the same computation."""

    shape: Shape
    generator: np.random.Generator

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.shape, np.dtype(np.float32)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(self.generator.random, None, np.float32, out)


class Expression:
    """A node: ``operation`` applied to ``inputs``, with a result of known shape and dtype."""

    __slots__ = ("dtype", "inputs", "operation", "shape")
    __array_ufunc__ = None  # makes array * expression call __rmul__
    __iter__ = None  # otherwise Python iterates by indexing x[0], x[1], ...

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
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def with_inputs(self, inputs: Iterable[Expression]) -> Expression:
        """Return the same operation on other inputs of the same shapes and dtypes."""
        return Expression(self.operation, tuple(inputs), self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"<{self.operation} {self.dtype}{list(self.shape)}>"

    def __bool__(self) -> bool:
        raise GraphError(f"{self} has no truth value before it is computed; use where()")

    # ``operations/__init__.py`` sets these to the functions of the operations.
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
    __pow__: ClassVar[BinaryOperator]
    __rpow__: ClassVar[BinaryOperator]
    __and__: ClassVar[BinaryOperator]
    __or__: ClassVar[BinaryOperator]
    __invert__: ClassVar[Callable[[Expression], Expression]]
    __neg__: ClassVar[Callable[[Expression], Expression]]
    __abs__: ClassVar[Callable[[Expression], Expression]]
    __lt__: ClassVar[BinaryOperator]
    __le__: ClassVar[BinaryOperator]
    __gt__: ClassVar[BinaryOperator]
    __ge__: ClassVar[BinaryOperator]
    __getitem__: ClassVar[Callable[[Expression, Any], Expression]]

    # NumPy's methods, set alike.
    argmax: ClassVar[Method]
    argmin: ClassVar[Method]
    astype: ClassVar[Method]
    clip: ClassVar[Method]
    cumsum: ClassVar[Method]
    max: ClassVar[Method]
    mean: ClassVar[Method]
    min: ClassVar[Method]
    reshape: ClassVar[Method]
    sum: ClassVar[Method]
    take: ClassVar[Method]
    transpose: ClassVar[Method]

    @property
    def T(self) -> Expression:
        return self.transpose()


Operand: TypeAlias = "Expression | Array | float"
BinaryOperator: TypeAlias = "Callable[[Expression, Operand], Expression]"
Method: TypeAlias = "Callable[..., Expression]"


def apply(operation: Operation, *inputs: Expression) -> Expression:
    """Return the node of ``operation`` on ``inputs``; raise ``ShapeError`` or ``DTypeError``."""
    shape, dtype = operation.result(*inputs)
    return Expression(operation, inputs, shape, dtype)


def variable(name: str, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Expression:
    """Return an input named ``name``; equal names in one graph denote the same array."""
    return Expression(Variable(name), (), _lengths(f"variable {name!r}", shape), np.dtype(dtype))


def uniform(shape: Sequence[int], generator: np.random.Generator) -> Expression:
    """Return float32 numbers in [0, 1), drawn anew at each run."""
    return apply(Uniform(_lengths("uniform", shape), generator))


def _lengths(name: str, shape: Sequence[int]) -> Shape:
    lengths = integers(f"{name}: shape", shape)
    if any(length < 0 for length in lengths):
        raise ShapeError(f"{name}: shape {lengths} has a negative length")
    return lengths


def constant(value: Array | float, dtype: DTypeLike | None = None) -> Expression:
    """Return a constant with a copy of ``value``; a Python number defaults to float32."""
    if dtype is None and isinstance(value, int | float) and not isinstance(value, bool):
        dtype = np.float32
    if (given := np.asarray(value)).dtype.kind not in "biuf":
        raise DTypeError(f"constant {value!r}: expected numbers, got dtype {given.dtype}")
    array = np.array(given, dtype=dtype, order="C")
    array.flags.writeable = False
    return Expression(Constant(array), (), array.shape, array.dtype)


def as_expression(value: Operand, like: Expression) -> Expression:
    """Return ``value``, wrapped in a constant if necessary; a number takes the dtype of ``like``.

    Raise ``DTypeError`` for a number that this dtype cannot hold: 0.5 as an integer, -1 as uint8.
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
        raise DTypeError(
            f"{value!r} is not a valid {like.dtype}; convert the expression with astype()"
        )
    return constant(value, like.dtype)


def broadcast_shape(name: str, *inputs: Expression) -> Shape:
    """Return the common shape of ``inputs`` under NumPy's broadcasting; raise ShapeError."""
    try:
        return np.broadcast_shapes(*(each.shape for each in inputs))
    except ValueError:
        shapes = " and ".join(str(each.shape) for each in inputs)
        raise ShapeError(
            f"{name}: shapes {shapes} do not broadcast; expected equal lengths, or 1, "
            f"on every axis counted from the last"
        ) from None


FLOATS = "f"
"""NumPy's kind of floats."""
NUMBERS = "fiu"
"""NumPy's kinds of floats, integers and unsigned integers."""
BOOLS = "b"
"""NumPy's kind of bools."""


def same_dtype(name: str, *inputs: Expression, kinds: str | None = None) -> np.dtype[np.generic]:
    """Return the common dtype of ``inputs``; there is no implicit promotion.

    Raise ``DTypeError`` if they differ or are not of ``kinds``: FLOATS, NUMBERS or BOOLS.
    """
    dtype = inputs[0].dtype
    if any(each.dtype != dtype for each in inputs):
        dtypes = " and ".join(str(each.dtype) for each in inputs)
        raise DTypeError(f"{name}: dtypes {dtypes} differ; convert one of them with astype()")
    if kinds and dtype.kind not in kinds:
        expected = {FLOATS: "floats", NUMBERS: "numbers", BOOLS: "bools"}[kinds]
        raise DTypeError(f"{name}: expected {expected}, got dtype {dtype}; convert with astype()")
    return dtype


def require_map(name: str, x: Expression) -> None:
    """Raise ``ShapeError`` unless ``x`` is a map, (N, H, W, C)."""
    if x.ndim != 4:
        raise ShapeError(
            f"{name}: expected (N, H, W, C), got {x.shape}; add a channel axis to grey images with "
            f"a Lambda"
        )


def operands(first: Operand, second: Operand) -> tuple[Expression, Expression]:
    """Return both as expressions; a number takes the other operand's dtype."""
    if isinstance(first, Expression):
        return first, as_expression(second, first)
    if isinstance(second, Expression):
        return as_expression(first, second), second
    raise DTypeError(
        f"expected an expression among {first!r} and {second!r}; wrap one of them in constant()"
    )


def topological_order(outputs: Iterable[Expression]) -> list[Expression]:
    """Return all nodes of ``outputs``, inputs before users. Not recursive: graphs are deep."""
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
