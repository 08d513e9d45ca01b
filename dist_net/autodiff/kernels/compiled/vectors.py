"""Vectors for compiled loops. Needs the extra ``fast``.

Loops work on 8 neighbouring values at once: ``load`` reads a vector, ``store`` writes it, and
vectors support + - *, ``larger`` and ``smaller``. LLVM also vectorizes loops over single values,
but not if stores might overlap, and Winograd's transforms write to 36 places at once. Bounds are
not checked; the tests check them by running the loops in plain Python.

Straight-line code is ``traced``: Python computes it once on ``Tracer`` values, which append their
instructions to the loop that is being compiled. numba would analyse and optimise each function by
itself, which took most of the time to compile the loops.

Arrays are passed flat. Functions are compiled when their module is imported.
"""

from collections.abc import Callable, Mapping
from functools import partial, partialmethod
from inspect import signature
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numpy.typing import NDArray

LANES = 8
WIDE = 16 if get_host_cpu_features().get("avx512f") else LANES
"""The values of this processor's widest vectors."""

Flat = NDArray[np.float32]
Three = tuple[int, int, int]
Four = tuple[int, int, int, int]
Pointer = Any
Lanes = Any
Function = TypeVar("Function", bound=Callable[..., Any])


def inlined(function: Function) -> Function:
    """Inline ``function``, which has loops or branches, into the loops that call it."""
    return cast(Function, numba.njit(forceinline=True)(function))


def integers(count: int) -> Any:
    """Return the type of a tuple of ``count`` integers, for ``jit``."""
    return types.UniTuple(types.intp, count)


# The rest of this module describes vectors to numba.

_FIRST = ir.Constant(ir.IntType(32), 0)
_ALIGNMENT = 4  # of a value, because a vector may begin at any value


def _vector_of(lanes: int, of: Any = ir.FloatType()) -> Any:  # noqa: B008
    return ir.VectorType(of, lanes)


class _VectorType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _vector_of(LANES))


VECTOR = _VectorType()


class Tracer:
    """A vector, an integer or a pointer of a loop in compilation; operators add instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    def _append(self, instruction: str, other: Any) -> "Tracer":
        prefix = "f" if isinstance(self.value.type, ir.VectorType) else ""
        method = getattr(self.builder, prefix + instruction)
        return Tracer(self.builder, method(self.value, self.alike(other).value))

    def alike(self, other: Any) -> "Tracer":
        """Return a Python number as a constant of the same type."""
        if isinstance(other, Tracer):
            return other
        type_ = self.value.type
        value = [float(other)] * type_.count if isinstance(type_, ir.VectorType) else other
        return Tracer(self.builder, ir.Constant(type_, value))

    __add__ = partialmethod(_append, "add")
    __sub__ = partialmethod(_append, "sub")
    __mul__ = __rmul__ = partialmethod(_append, "mul")
    __truediv__ = partialmethod(_append, "div")

    def __rtruediv__(self, number: float) -> "Tracer":
        return self.alike(number)._append("div", self)


def traced(result: Any = types.none) -> Callable[[Function], Function]:
    """Let loops call a function of ``Tracer`` values and tuples of them; ``result``: its type."""

    def registered(function: Function) -> Function:
        type_of: Any = lambda *_: result  # noqa: E731
        type_of.pysig = signature(function)
        type_callable(function)(lambda _: type_of)
        lower_builtin(function, types.VarArg(types.Any))(partial(_append_code, function, result))
        return function

    return registered


def _append_code(
    function: Function, result: Any, context: Any, builder: Any, _: Any, arguments: Any
) -> Any:
    """Append the instructions of a traced function; return its result as a value of numba."""
    returned = function(*(_tracers(builder, each) for each in arguments))
    if isinstance(returned, tuple):
        return context.make_tuple(builder, result, [each.value for each in returned])
    return context.get_dummy_value() if returned is None else returned.value


def _tracers(builder: Any, value: Any) -> Any:
    """Return a tracer of a value, or a tuple of those of a tuple's values."""
    if not isinstance(value.type, ir.ArrayType | ir.LiteralStructType):
        return Tracer(builder, value)
    places = range(len(value.type))
    return tuple(_tracers(builder, builder.extract_value(value, place)) for place in places)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_: Any, array: Any) -> Any:
    """Return the address of a flat array, which functions pass without reference counting."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(types.float32)(array), code


def _address(source: Pointer, index: Any, vector: Any) -> Any:
    builder = source.builder
    return builder.bitcast(builder.gep(source.value, [index.value]), vector.as_pointer())


@traced(VECTOR)
def load(source: Pointer, index: Any, lanes: int = LANES) -> Lanes:
    """Return the vector at ``index`` of a flat array, given its pointer."""
    builder, address = source.builder, _address(source, index, _vector_of(lanes))
    return Tracer(builder, builder.load(address, align=_ALIGNMENT))


@traced()
def store(target: Pointer, index: Any, value: Lanes) -> None:
    """Write a vector to a flat array at ``index``, given its pointer."""
    address = _address(target, index, value.value.type)
    value.builder.store(value.value, address, align=_ALIGNMENT)


@traced(types.float32)
def value_at(source: Pointer, index: Any) -> Any:
    """Return the value at ``index`` of a flat array, given its pointer."""
    builder = source.builder
    return Tracer(builder, builder.load(builder.gep(source.value, [index.value])))


@traced(VECTOR)
def spread(value: Any, lanes: int = LANES) -> Lanes:
    builder, empty = value.builder, ir.Constant(_vector_of(lanes), ir.Undefined)
    all_first = ir.Constant(_vector_of(lanes, ir.IntType(32)), None)
    first = builder.insert_element(empty, value.value, _FIRST)
    return Tracer(builder, builder.shuffle_vector(first, empty, all_first))


def zeros(beside: Any, lanes: int) -> Lanes:
    """Return a vector of zeros for the loop of another value; only for ``traced`` functions."""
    return Tracer(beside.builder, ir.Constant(_vector_of(lanes), None))


@traced(VECTOR)
def larger(a: Lanes, b: Lanes) -> Lanes:
    """Return the elementwise maximum; ``a`` if neither is larger, so NaN in ``a`` stays NaN."""
    return _b_where(">", a, b)


@traced(VECTOR)
def smaller(a: Lanes, b: Lanes) -> Lanes:
    """Return the elementwise minimum; ``a`` if neither is smaller, so NaN in ``a`` stays NaN."""
    return _b_where("<", a, b)


def _b_where(comparison: str, a: Lanes, b: Lanes) -> Lanes:
    builder, b = a.builder, a.alike(b)
    chosen = builder.fcmp_ordered(comparison, b.value, a.value)
    return Tracer(builder, builder.select(chosen, b.value, a.value))


@traced(VECTOR)
def multiply_add(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Return a · b + c, rounded once if the processor has an instruction for it."""
    return _by_intrinsic("fmuladd", a, a.alike(b), a.alike(c))


@traced(VECTOR)
def square_root(a: Lanes) -> Lanes:
    return _by_intrinsic("sqrt", a)


def _by_intrinsic(name: str, *vectors: Lanes) -> Lanes:
    builder, vector = vectors[0].builder, vectors[0].value.type
    type_ = ir.FunctionType(vector, [vector] * len(vectors))
    function = get_or_insert_function(builder.module, type_, f"llvm.{name}.v{vector.count}f32")
    return Tracer(builder, builder.call(function, [each.value for each in vectors]))


@traced(VECTOR)
def power_of_two(exponents: Lanes) -> Lanes:
    """Return 2 to the power of whole numbers from -126 to 127, a float's exponents; 128: inf."""
    builder, integers = exponents.builder, _vector_of(LANES, ir.IntType(32))
    bias, place = (ir.Constant(integers, [number] * LANES) for number in (127, 23))
    biased = builder.add(builder.fptosi(exponents.value, integers), bias)
    return Tracer(builder, builder.bitcast(builder.shl(biased, place), _vector_of(LANES)))


def across(a: Lanes, combine: Callable[[Lanes, Lanes], Lanes]) -> Lanes:
    """Combine the values of a vector, and return a vector of the result."""
    for apart in (4, 2, 1):
        order = [lane ^ apart for lane in range(LANES)]
        places = ir.Constant(_vector_of(LANES, ir.IntType(32)), order)
        a = combine(a, Tracer(a.builder, a.builder.shuffle_vector(a.value, a.value, places)))
    return a


def repeated(count: Any, step: Callable[..., Any], *state: Lanes, by: int = 1) -> tuple[Lanes, ...]:
    """Return the vectors after ``state = step(i, *state)`` for i = 0, ``by``, 2 · ``by``, ... below
    ``count``, but at least once."""
    builder, before = count.builder, count.builder.block
    body, after = (builder.append_basic_block() for _ in range(2))
    builder.branch(body)
    builder.position_at_end(body)
    first = [count.alike(0), *state]
    now = [Tracer(builder, builder.phi(each.value.type)) for each in first]
    changed = step(*now)
    then = [now[0] + by, *(changed if state else ())]
    for phi, start, following in zip(now, first, then, strict=True):
        phi.value.add_incoming(start.value, before)
        phi.value.add_incoming(following.value, builder.block)
    is_inside = builder.icmp_signed("<", then[0].value, count.value)
    builder.cbranch(is_inside, body, after)
    builder.position_at_end(after)
    return tuple(then[1:])


def run_chosen(number: Any, functions: Mapping[int, Callable[[], None]]) -> None:
    """Call the function of ``number``, if any; only for ``traced`` functions."""
    for each, function in functions.items():
        is_chosen = number.builder.icmp_signed("==", number.value, number.alike(each).value)
        with number.builder.if_then(is_chosen):
            function()


def changed_if(condition: Any, change: Callable[[Lanes], Lanes], value: Lanes) -> Lanes:
    """Return ``change(value)`` if ``condition``, else ``value``; only for ``traced`` functions."""
    builder = value.builder
    before = builder.block
    with builder.if_then(condition.value):
        changed = change(value)
        after = builder.block
    either = builder.phi(value.value.type)
    either.add_incoming(value.value, before)
    either.add_incoming(changed.value, after)
    return Tracer(builder, either)
