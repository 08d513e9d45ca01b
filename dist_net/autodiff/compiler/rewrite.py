"""Rewrites a graph before compilation, to compute the same values with less work.

One sweep from the variables to the outputs rebuilds each node on its rewritten inputs, simplifies
it by the rules below, and merges it with any equal node seen before.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dist_net.autodiff.compiler.steps import unreshaped
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
    Elementwise,
    Mask,
    Where,
    add,
    divide,
    multiply,
    relu,
    subtract,
)
from dist_net.autodiff.operations.fused import defined
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.autodiff.operations.reduction import BroadcastTo, broadcast_to
from dist_net.autodiff.operations.selection import StopGradient
from dist_net.autodiff.operations.shaping import Reshape, Transpose, reshape, transpose
from dist_net.errors import GraphError


def rewrite(outputs: Sequence[Expression]) -> list[Expression]:
    """Return simpler graphs, with equal nodes merged; raise GraphError for unequal variables."""
    rewritten: dict[int, Expression] = {}
    shared: dict[object, Expression] = {}
    outputs = defined(outputs, lambda operation, x: not operation.is_compiled(x))
    for node in topological_order(outputs):
        same = node.with_inputs(rewritten[id(each)] for each in node.inputs)
        identity = _identity(same)
        if identity not in shared:
            shared[identity] = _share(simplify(same), shared)
        first = rewritten[id(node)] = shared[identity]
        if isinstance(same.operation, Variable) and (
            (first.shape, first.dtype) != (same.shape, same.dtype)
        ):
            raise GraphError(f"two variables of one name: {first} and {same}; use different names")
    return [rewritten[id(each)] for each in outputs]


def _share(node: Expression, shared: dict[object, Expression]) -> Expression:
    """Return the first node that computes the same; inputs that a rule created are merged, too."""
    known = shared.get(_identity(node))
    if known is not None:
        return known
    node = node.with_inputs(_share(each, shared) for each in node.inputs)
    return shared.setdefault(_identity(node), node)


def _identity(node: Expression) -> object:
    """Return a key that is equal for nodes that compute the same."""
    if isinstance(node.operation, Constant) and node.size == 1:
        return node.dtype, node.shape, node.operation.value.tobytes()
    return node.operation, tuple(id(each) for each in node.inputs)


def simplify(node: Expression) -> Expression:
    """Apply the rules in order until none fits, and return the result."""
    while True:
        for rule in RULES:
            simpler = rule(node)
            if simpler is not None:
                node = simpler
                break
        else:
            return node


def fold_constants(node: Expression) -> Expression | None:
    """Evaluate an operation on constants, except a broadcast, which would become large."""
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


def merge_views(node: Expression) -> Expression | None:
    """Merge two successive reshapes, transposes or broadcasts, and drop views without effect.

    A scalar broadcasts to any shape, so a reshape before or after that broadcast has no effect. Nor
    has a stop_gradient, once the gradients are built.
    """
    if isinstance(node.operation, StopGradient):
        return node.inputs[0]
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
    """Compute an elementwise operation before a broadcast of its inputs, not after it."""
    if not isinstance(node.operation, Elementwise):
        return None
    inputs = [
        each.inputs[0] if isinstance(each.operation, BroadcastTo) else each for each in node.inputs
    ]
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return None
    return broadcast_to(simplify(apply(node.operation, *inputs)), node.shape)


def drop_neutral_operand(node: Expression) -> Expression | None:
    """x + 0, x - 0, 1 * x and x / 1 are x."""
    if node.operation not in (add, subtract, multiply, divide):
        return None
    neutral = 0.0 if node.operation in (add, subtract) else 1.0
    first, second = node.inputs
    if is_scalar(second, neutral) and first.shape == node.shape:
        return first
    commutes = node.operation in (add, multiply)
    if commutes and is_scalar(first, neutral) and second.shape == node.shape:
        return second
    return None


def merge_scales_and_shifts(node: Expression) -> Expression | None:
    """(x·a + c) + (y·b + d), and (x·a + c) + d with one d per column, take one pass."""
    if node.operation != add:
        return None
    for first, second in (node.inputs, node.inputs[::-1]):
        if first.operation != ScaleAndShift():
            continue
        shift, *terms = first.inputs
        if second.operation == first.operation and first.shape == second.shape:
            other_shift, *other_terms = second.inputs
            return apply(first.operation, shift + other_shift, *terms, *other_terms)
        is_one_per_column = second.size == shift.size and second.shape[-1:] == shift.shape
        if is_one_per_column and node.shape == first.shape:
            return apply(first.operation, shift + reshape(second, shift.shape), *terms)
    return None


def rectify_while_scaling(node: Expression) -> Expression | None:
    """relu(x·a + c) takes one pass, and so does relu(x·a + c + y), where y may be y·b + d."""
    if node.operation != relu:
        return None
    (x,) = node.inputs
    parts = [unreshaped(each) for each in (x.inputs if x.operation == add else (x,))]
    scaled, *others = sorted(parts, key=lambda each: each.operation != ScaleAndShift())
    if scaled.operation != ScaleAndShift() or any(each.size != x.size for each in parts):
        return None
    shift, *terms = scaled.inputs
    for other in others:
        if other.operation == scaled.operation and other.shape == scaled.shape:
            shift, terms = shift + other.inputs[0], [*terms, *other.inputs[1:]]
        else:
            ones = constant(np.ones(shift.shape, node.dtype))
            terms += [reshape(other, scaled.shape), ones]
    return reshape(apply(ScaleAndShift(rectifies=True), shift, *terms), node.shape)


def recognise_mask(node: Expression) -> Expression | None:
    """A choice between x and 0 is a product, if an integer type has as many bits as x."""
    if not isinstance(node.operation, Where) or node.dtype.itemsize > 8:
        return None
    condition, x, otherwise = node.inputs
    return apply(Mask(), condition, x) if is_scalar(otherwise, 0.0) else None


def is_scalar(node: Expression, value: float) -> bool:
    """Return whether the node is a scalar constant equal to ``value``."""
    if not isinstance(node.operation, Constant) or node.shape != ():
        return False
    return bool(node.operation.value == value)


Rule = Callable[[Expression], Expression | None]
RULES: tuple[Rule, ...] = (
    merge_views,
    fold_constants,
    compute_before_broadcasting,
    drop_neutral_operand,
    merge_scales_and_shifts,
    rectify_while_scaling,
    recognise_mask,
)
