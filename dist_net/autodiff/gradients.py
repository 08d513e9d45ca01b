"""The engine, 2 of 5: gradients, built as expressions in one backward sweep.

A node's cotangent is the gradient of the output with respect to that node: the sum of the
contributions of the node's users. From it, the VJP of the node's operation computes the node's
contributions to its inputs. The sweep visits each node once, so all gradients together cost a small
multiple of the output itself, for any number of parameters.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce

import numpy as np

from dist_net.autodiff.expression import Expression, Variable, apply, constant, topological_order
from dist_net.autodiff.operations.elementwise import add
from dist_net.autodiff.operations.fused import defined
from dist_net.autodiff.operations.reduction import broadcast_to
from dist_net.autodiff.operations.shaping import Index, ZerosAround
from dist_net.errors import DTypeError, GradientError, GraphError, ShapeError


def gradients(output: Expression, variables: Sequence[Expression]) -> list[Expression]:
    """Return the gradient of a scalar ``output`` with respect to each of ``variables``.

    ``variables`` may be any expressions. The gradient is zero if ``output`` does not depend on the
    expression. Raise ``ShapeError`` if ``output`` is not a scalar, ``DTypeError`` if it is not a
    float, ``GraphError`` if the graph has a variable of the same name and another shape or dtype,
    ``GradientError`` unless every VJP returns a cotangent of the right shape for each input.
    """
    if output.shape != ():
        raise ShapeError(f"gradients: expected a scalar output, got shape {output.shape}")
    if output.dtype.kind != "f":
        raise DTypeError(f"gradients: expected a float output, got dtype {output.dtype}")
    output, *variables = defined([output, *variables], lambda each, _: each.gradient is None)
    order = topological_order([output])
    influenced = _influenced_by(variables, order)
    contributions = defaultdict(list, {_key(output): [constant(1.0, output.dtype)]})
    for node in reversed(order):
        if not node.inputs or _key(node) not in influenced or _key(node) not in contributions:
            continue
        cotangent = _total(contributions[_key(node)])
        contributions[_key(node)] = [cotangent]
        flowing = node.operation.vjp(node, cotangent)
        _expect_fitting(node, flowing)
        for each, contribution in zip(node.inputs, flowing, strict=True):
            if contribution is not None and _key(each) in influenced:
                contributions[_key(each)].append(contribution)
    return [_gradient(each, contributions.get(_key(each))) for each in variables]


def _total(contributions: Sequence[Expression]) -> Expression:
    """Return a node's cotangent: the sum of its users' contributions."""
    terms: list[Expression] = []
    placed: list[Expression] = []
    indices: list[Index] = []
    for each in contributions:
        if isinstance(each.operation, ZerosAround):
            indices += [each.operation.index, *each.operation.more]
            placed += each.inputs
        else:
            terms.append(each)
    if indices:
        first, *more = indices
        terms.append(apply(ZerosAround(contributions[0].shape, first, tuple(more)), *placed))
    return reduce(add, terms)


def _key(node: Expression) -> object:
    return node.operation if isinstance(node.operation, Variable) else id(node)


def _influenced_by(variables: Sequence[Expression], order: Sequence[Expression]) -> set[object]:
    """Return the keys of ``variables`` and of all nodes that depend on them."""
    influenced = {_key(each) for each in variables}
    for node in order:
        if any(_key(each) in influenced for each in node.inputs):
            influenced.add(_key(node))
    return influenced


def _expect_fitting(node: Expression, flowing: Sequence[Expression | None]) -> None:
    """Raise ``GradientError`` unless each input of the node has a cotangent or None."""
    name = node.operation.label
    if len(flowing) != len(node.inputs):
        raise GradientError(
            f"{name}: its VJP returns {len(flowing)} cotangents for {len(node.inputs)} inputs; "
            f"expected one for each, None for a zero derivative"
        )
    for i, (each, cotangent) in enumerate(zip(node.inputs, flowing, strict=True)):
        if cotangent is None:
            continue
        if not isinstance(cotangent, Expression):
            found = type(cotangent).__name__
        elif (cotangent.shape, cotangent.dtype) != (each.shape, each.dtype):
            found = f"{cotangent.dtype}{list(cotangent.shape)}"
        else:
            continue
        raise GradientError(
            f"{name}: its VJP returns {found} for input {i}; expected an expression of the input's "
            f"shape and dtype, {each.dtype}{list(each.shape)}"
        )


def _gradient(node: Expression, contributions: Sequence[Expression] | None) -> Expression:
    if contributions is None:
        return broadcast_to(constant(np.zeros((), node.dtype)), node.shape)
    cotangent = _total(contributions)
    if (cotangent.shape, cotangent.dtype) != (node.shape, node.dtype):
        raise GraphError(
            f"gradients: {node} is {cotangent.dtype}{list(cotangent.shape)} in the graph; "
            f"use different names"
        )
    return cotangent
