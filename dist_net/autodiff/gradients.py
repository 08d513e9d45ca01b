"""The engine, 2 of 6: gradients, which are expressions too, all of them built in one sweep back.

A node's cotangent is the gradient of the output with respect to that node. It is the sum of what
the node's users contribute; the VJP of the node's operation then computes from it what the node
contributes to its inputs. Each node is visited once, so that all gradients together cost a small
multiple of the output itself, however many parameters there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce

import numpy as np

from dist_net.autodiff.expression import (
    Expression,
    Variable,
    apply,
    constant,
    topological_order,
)
from dist_net.autodiff.operations.elementwise import add
from dist_net.autodiff.operations.reduction import broadcast_to
from dist_net.autodiff.operations.slicing import Index, ZerosAround
from dist_net.errors import DTypeError, GradientError, GraphError, ShapeError


def gradients(output: Expression, variables: Sequence[Expression]) -> list[Expression]:
    """The gradient of a scalar ``output`` with respect to each of ``variables``.

    ``variables`` may be any expressions of the graph. One that ``output`` does not depend on has
    a gradient of zeros. Raises ShapeError if ``output`` is not a scalar, DTypeError if it is not
    a float, GraphError if the graph has a variable of the same name and another shape or dtype,
    GradientError if an operation's VJP does not return a fitting cotangent for each input.
    """
    if output.shape != ():
        raise ShapeError(f"gradients: expected a scalar output, got shape {output.shape}")
    if output.dtype.kind != "f":
        raise DTypeError(f"gradients: expected a float output, got dtype {output.dtype}")
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
    """Return the sum of what a node's users contribute to its cotangent."""
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
    """A key for what has one gradient: a node, or all variables of one name."""
    return node.operation if isinstance(node.operation, Variable) else id(node)


def _influenced_by(variables: Sequence[Expression], order: Sequence[Expression]) -> set[object]:
    """The keys of the nodes that depend on one of ``variables``, themselves included."""
    influenced = {_key(each) for each in variables}
    for node in order:
        if any(_key(each) in influenced for each in node.inputs):
            influenced.add(_key(node))
    return influenced


def _expect_fitting(node: Expression, flowing: Sequence[Expression | None]) -> None:
    """Raises GradientError unless there is a cotangent, or None, for each of the node's inputs."""
    name = type(node.operation).__name__
    if len(flowing) != len(node.inputs):
        raise GradientError(
            f"{name}: its VJP gives {len(flowing)} cotangents for {len(node.inputs)} inputs; "
            f"expected one for each, None where nothing flows"
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
            f"{name}: its VJP gives {found} for input {i}; expected an expression of the input's "
            f"shape and dtype, {each.dtype}{list(each.shape)}"
        )


def _gradient(node: Expression, contributions: Sequence[Expression] | None) -> Expression:
    if contributions is None:
        return _zeros_like(node)
    cotangent = _total(contributions)
    if (cotangent.shape, cotangent.dtype) != (node.shape, node.dtype):
        raise GraphError(
            f"gradients: {node} is {cotangent.dtype}{list(cotangent.shape)} in the graph; "
            f"name them apart"
        )
    return cotangent


def _zeros_like(node: Expression) -> Expression:
    return broadcast_to(constant(np.zeros((), node.dtype)), node.shape)
