"""Vectors for compiled loops. Needs the extra ``fast``.

Loops work on 8 neighbouring values at once: ``load`` reads a vector, ``store`` writes it, and
vectors support + - *, ``larger`` and ``smaller``. LLVM also vectorizes loops over single values,
but not if stores might overlap, and Winograd's transforms write to 36 places at once. Bounds are
not checked; the tests check them by running the loops in plain Python.

Arrays are passed flat. Functions are compiled when their module is imported.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numpy.typing import NDArray

# ruff: noqa: ARG001 - numba calls every code generator with the same arguments

LANES = 8

Flat = NDArray[np.float32]
Pointer = Any
Lanes = Any
Function = TypeVar("Function", bound=Callable[..., Any])


def inlined(function: Function) -> Function:
    """Inline ``function`` into its callers, so that vectors stay in registers."""
    return cast(Function, numba.njit(forceinline=True)(function))


def integers(count: int) -> Any:
    """Return the type of a tuple of ``count`` integers, for ``jit``."""
    return types.UniTuple(types.intp, count)


def reals(count: int) -> Any:
    """Return the type of a tuple of ``count`` float32, for ``jit``."""
    return types.UniTuple(types.float32, count)


# The rest of this module describes vectors to numba.

_LLVM = ir.VectorType(ir.FloatType(), LANES)
_FIRST = ir.Constant(ir.IntType(32), 0)
_ANY = ir.Constant(_LLVM, ir.Undefined)
_ALL_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
_ALIGNMENT = 4  # of a value, because a vector may begin at any value


class _VectorType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _LLVM)


VECTOR = _VectorType()


def _address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), _LLVM.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_: Any, array: Any) -> Any:
    """Return the address of a flat array, which functions pass without reference counting."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(types.float32)(array), code


@intrinsic  # type: ignore[untyped-decorator]
def load(_: Any, source: Any, index: Any) -> Any:
    """Return the vector at ``index`` of a flat array, given its pointer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(builder, *arguments), align=_ALIGNMENT)

    return VECTOR(types.CPointer(types.float32), types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def store(_: Any, target: Any, index: Any, value: Any) -> Any:
    """Write a vector to a flat array at ``index``, given its pointer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, value = arguments
        builder.store(value, _address(builder, *place), align=_ALIGNMENT)
        return context.get_dummy_value()

    return types.none(types.CPointer(types.float32), types.intp, VECTOR), code


@intrinsic  # type: ignore[untyped-decorator]
def spread(_: Any, value: Any) -> Any:
    """Return a vector of one value."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.insert_element(_ANY, arguments[0], _FIRST)
        return builder.shuffle_vector(first, _ANY, _ALL_FIRST)

    return VECTOR(types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def larger(_: Any, a: Any, b: Any) -> Any:
    """Return the elementwise maximum; ``a`` if neither is larger, so NaN in ``a`` stays NaN."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    return VECTOR(VECTOR, VECTOR), code


@intrinsic  # type: ignore[untyped-decorator]
def smaller(_: Any, a: Any, b: Any) -> Any:
    """Return the elementwise minimum; ``a`` if neither is smaller, so NaN in ``a`` stays NaN."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", b, a), b, a)

    return VECTOR(VECTOR, VECTOR), code


@intrinsic  # type: ignore[untyped-decorator]
def multiply_add(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c, rounded once if the processor has an instruction for it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = ir.FunctionType(_LLVM, [_LLVM] * 3)
        name = f"llvm.fmuladd.v{LANES}f32"
        return builder.call(get_or_insert_function(builder.module, type_, name), arguments)

    return VECTOR(VECTOR, VECTOR, VECTOR), code


def _describe(operation: Any, instruction: str) -> None:
    def typer(_: Any) -> Any:
        def type_of(a: Any, b: Any) -> Any:
            return VECTOR if a == b == VECTOR else None

        return type_of

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments)

    type_callable(operation)(typer)
    lower_builtin(operation, VECTOR, VECTOR)(code)


_describe(operator.add, "fadd")
_describe(operator.sub, "fsub")
_describe(operator.mul, "fmul")
