"""Rewrites of a graph before it is compiled: the same values, computed with less.

One sweep from the variables to the outputs. Each node is rebuilt on its rewritten inputs,
simplified by the rules below, and shared with any equal node seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from dist_net.autodiff.expression import (
    Constant,
    Expression,
    Variable,
    View,
    apply,
    constant,
    topological_order,
)
from dist_net.autodiff.operations.elementwise import (
    Add,
    Divide,
    Elementwise,
    Multiply,
    Negative,
    Subtract,
    multiply,
    negative,
)
from dist_net.autodiff.operations.leaky_relu_gradient import LeakyRelu
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.autodiff.operations.reduction import BroadcastTo, broadcast_to
from dist_net.autodiff.operations.selection import AsType, Mask, Maximum, StopGradient, Where
from dist_net.autodiff.operations.shaping import Reshape, Transpose, reshape, transpose
from dist_net.errors import GraphError


def rewrite(outputs: Sequence[Expression]) -> list[Expression]:
    """Simpler expressions of the same values, in which equal nodes are one node.

    Raises GraphError if two variables of one name differ in shape or dtype.
    """
    rewritten: dict[int, Expression] = {}
    shared: dict[object, Expression] = {}
    for node in topological_order(outputs):
        same = node.with_inputs(rewritten[id(each)] for each in node.inputs)
        identity = _identity(same)
        if identity not in shared:
            shared[identity] = _share(simplify(same), shared)
        if isinstance(same.operation, Variable):
            _expect_same_variable(shared[identity], same)
        rewritten[id(node)] = shared[identity]
    return [rewritten[id(each)] for each in outputs]


def _share(node: Expression, shared: dict[object, Expression]) -> Expression:
    """The first node that computes the same as ``node``.

    A rule may make new inputs, so these are shared too; the recursion is no deeper than what one
    rule makes.
    """
    known = shared.get(_identity(node))
    if known is not None:
        return known
    node = node.with_inputs(_share(each, shared) for each in node.inputs)
    return shared.setdefault(_identity(node), node)


def _identity(node: Expression) -> object:
    """Equal for nodes that compute the same."""
    if isinstance(node.operation, Constant) and node.size == 1:
        return node.dtype, node.shape, node.operation.value.tobytes()
    return node.operation, tuple(id(each) for each in node.inputs)


def _expect_same_variable(first: Expression, second: Expression) -> None:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        raise GraphError(f"two variables of one name: {first} and {second}; name them apart")


def simplify(node: Expression) -> Expression:
    """The node after every rule that fits, tried in order until none does."""
    while True:
        for rule in RULES:
            simpler = rule(node)
            if simpler is not None:
                node = simpler
                break
        else:
            return node


def fold_constants(node: Expression) -> Expression | None:
    """An operation on constants is a constant, except a broadcast, which would become large."""
    values = [each.operation.value for each in node.inputs if isinstance(each.operation, Constant)]
    if not values or len(values) < len(node.inputs) or isinstance(node.operation, BroadcastTo):
        return None
    if not node.operation.can_be_computed_beforehand:
        return None
    if isinstance(node.operation, View):
        return constant(node.operation.view(values[0]))
    out = np.empty(node.shape, node.dtype)
    with np.errstate(all="ignore"):
        node.operation.bind(values, out)()
    return constant(out)


def drop_stop_gradient(node: Expression) -> Expression | None:
    """It has done its work once the gradients are built."""
    return node.inputs[0] if isinstance(node.operation, StopGradient) else None


def merge_views(node: Expression) -> Expression | None:
    """Merges two reshapes, transposes or broadcasts in a row, and drops views that change nothing.

    A scalar broadcasts to any shape, so a reshape before or after that broadcast changes nothing.
    """
    if isinstance(node.operation, Reshape | BroadcastTo) and node.shape == node.inputs[0].shape:
        return node.inputs[0]
    if not node.inputs or not node.inputs[0].inputs:
        return None
    inner = node.inputs[0]
    source = inner.inputs[0]
    match node.operation, inner.operation:
        case Reshape(), Reshape():
            return reshape(source, node.shape)
        case Transpose(axes=outer), Transpose(axes=first):
            return transpose(source, [first[axis] for axis in outer])
        case BroadcastTo(), BroadcastTo():
            return broadcast_to(source, node.shape)
        case (Reshape(), BroadcastTo()) | (BroadcastTo(), Reshape()) if source.shape == ():
            return broadcast_to(source, node.shape)
    return None


def compute_before_broadcasting(node: Expression) -> Expression | None:
    """An elementwise operation on broadcast inputs is the operation on small ones, broadcast."""
    if not isinstance(node.operation, Elementwise | Mask | AsType):
        return None
    inputs = [
        each.inputs[0] if isinstance(each.operation, BroadcastTo) else each for each in node.inputs
    ]
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return None
    return broadcast_to(simplify(apply(node.operation, *inputs)), node.shape)


def drop_neutral_operand(node: Expression) -> Expression | None:
    """x + 0, x - 0, 1 * x and x / 1 are x."""
    if not isinstance(node.operation, Add | Subtract | Multiply | Divide):
        return None
    neutral = 0.0 if isinstance(node.operation, Add | Subtract) else 1.0
    first, second = node.inputs
    if is_scalar(second, neutral) and first.shape == node.shape:
        return first
    commutes = isinstance(node.operation, Add | Multiply)
    if commutes and is_scalar(first, neutral) and second.shape == node.shape:
        return second
    return None


def resolve_negatives(node: Expression) -> Expression | None:
    """-(-x) is x, a + -b is a - b, a - -b is a + b."""
    negated = [
        each.inputs[0] if isinstance(each.operation, Negative) else None for each in node.inputs
    ]
    match node.operation, node.inputs, negated:
        case Negative(), _, [Expression() as x]:
            return x
        case Add(), (a, _), [_, Expression() as b]:
            return a - b
        case Add(), (_, b), [Expression() as a, _]:
            return b - a
        case Subtract(), (a, _), [_, Expression() as b]:
            return a + b
    return None


def merge_scales_and_shifts(node: Expression) -> Expression | None:
    """(x·a + c) + (y·b + d), and (x·a + c) + d with a d for each column, in one pass."""
    if not isinstance(node.operation, Add):
        return None
    for first, second in (node.inputs, node.inputs[::-1]):
        if not isinstance(first.operation, ScaleAndShift):
            continue
        shift, *terms = first.inputs
        if isinstance(second.operation, ScaleAndShift) and first.shape == second.shape:
            other_shift, *other_terms = second.inputs
            return apply(first.operation, shift + other_shift, *terms, *other_terms)
        if second.size == shift.size and second.shape[-1:] == shift.shape:
            return apply(first.operation, shift + reshape(second, shift.shape), *terms)
    return None


def merge_scalar_factors(node: Expression) -> Expression | None:
    """(x * c) * d is x * (c * d), and -(x * c) is x * -c: one pass over x instead of two."""
    match node.operation, node.inputs:
        case Negative(), (inner,):
            return _scaled(inner, negative)
        case Multiply(), (inner, outer) if is_scalar(outer):
            return _scaled(inner, partial(multiply, outer))
        case Multiply(), (outer, inner) if is_scalar(outer):
            return _scaled(inner, partial(multiply, outer))
    return None


def recognise_leaky_relu(node: Expression) -> Expression | None:
    """max(x, x * slope) is a leaky relu for a slope from 0 to 1."""
    if not isinstance(node.operation, Maximum) or node.dtype.kind != "f":
        return None
    for x, scaled in (node.inputs, node.inputs[::-1]):
        if isinstance(scaled.operation, Multiply):
            for factor, slope in (scaled.inputs, scaled.inputs[::-1]):
                if factor is x and isinstance(slope.operation, Constant) and is_scalar(slope):
                    value = float(slope.operation.value.item())
                    return apply(LeakyRelu(value), x) if 0 <= value <= 1 else None
    return None


def recognise_mask(node: Expression) -> Expression | None:
    """A choice between x and 0 is a product, if there is an integer of as many bits as x has."""
    if not isinstance(node.operation, Where) or node.dtype.itemsize > 8:
        return None
    condition, x, otherwise = node.inputs
    return apply(Mask(), condition, x) if is_scalar(otherwise, 0.0) else None


def _scaled(product: Expression, change: Callable[[Expression], Expression]) -> Expression | None:
    """x * factor with another factor, unless that is out of the dtype's range."""
    if not isinstance(product.operation, Multiply):
        return None
    for x, factor in (product.inputs, product.inputs[::-1]):
        if is_scalar(factor):
            changed = simplify(change(factor))
            return x * changed if _is_in_range(changed) else None
    return None


def _is_in_range(scalar: Expression) -> bool:
    """Whether a product of factors has neither overflowed nor lost digits near zero."""
    if not isinstance(scalar.operation, Constant) or scalar.dtype.kind != "f":
        return True
    limits = np.finfo(scalar.dtype.name)
    magnitude: float = abs(scalar.operation.value.item())
    return float(limits.tiny) <= magnitude <= float(limits.max)


def is_scalar(node: Expression, value: float | None = None) -> bool:
    """Whether the node is a constant without axes, and, if given, equal to ``value``."""
    if not isinstance(node.operation, Constant) or node.shape != ():
        return False
    return value is None or bool(node.operation.value == value)


Rule = Callable[[Expression], Expression | None]
RULES: tuple[Rule, ...] = (
    drop_stop_gradient,
    merge_views,
    fold_constants,
    compute_before_broadcasting,
    drop_neutral_operand,
    resolve_negatives,
    merge_scales_and_shifts,
    merge_scalar_factors,
    recognise_leaky_relu,
    recognise_mask,
)
