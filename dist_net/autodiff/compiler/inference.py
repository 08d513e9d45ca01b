"""Inference: a network whose weights are given beforehand, rewritten to take fewer passes.

outputs ─fuse─▶ convolutions with scale, bias, activation, residual ─plan─▶ algorithms
        ─split─▶ what depends on the weights alone, computed once: the *prepared* arrays
                 what depends on the inputs too, computed for every batch
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from dist_net.autodiff.compiler.rewrite import rewrite
from dist_net.autodiff.expression import (
    Constant,
    Expression,
    Variable,
    apply,
    constant,
    topological_order,
    variable,
)
from dist_net.autodiff.kernels.convolution.choice import choose, images_of_a_piece
from dist_net.autodiff.kernels.convolution.epilogue import LINEAR, Epilogue
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import Windows
from dist_net.autodiff.operations.convolution import Conv2D
from dist_net.autodiff.operations.elementwise import Add, Divide, Multiply, Subtract
from dist_net.autodiff.operations.fused_convolution import (
    FusedConvolution,
    PlannedConvolution,
    PreparedFilters,
)
from dist_net.autodiff.operations.joining import concatenate
from dist_net.autodiff.operations.leaky_relu_gradient import LeakyRelu
from dist_net.autodiff.operations.matmul import MatMul
from dist_net.autodiff.operations.reduction import broadcast_to
from dist_net.autodiff.operations.selection import Clip
from dist_net.autodiff.operations.shaping import Reshape, reshape

POINTWISE = Windows((1, 1), (1, 1), ((0, 0), (0, 0)))


class Specialised(NamedTuple):
    """``outputs`` need the inputs and the arrays in ``prepared``, by name; those, the weights."""

    outputs: list[Expression]
    prepared: dict[str, Expression]


def specialise(
    outputs: Sequence[Expression],
    weights: Collection[str],
    pool: ThreadPool,
    reproducible: bool = False,
    compiled: bool = False,
) -> Specialised:
    """The graph of ``outputs`` for weights that do not change: variables of these names.

    Convolutions are computed by ``pool``, and so are products with a fixed matrix.
    ``reproducible``: an image's answer does not depend on the others in its batch. ``compiled``:
    with the extra ``fast``. See ``choose`` for both.
    """
    fused = _Fusion(rewrite(outputs), weights)
    planned = _planned(fused.outputs, pool, reproducible, compiled)
    return _split(planned, weights)


def _fixed(nodes: Sequence[Expression], weights: Collection[str]) -> set[int]:
    """The ids of the nodes that depend on weights and constants alone."""
    fixed: set[int] = set()
    for node in topological_order(nodes):
        match node.operation:
            case Constant():
                fixed.add(id(node))
            case Variable(name):
                if name in weights:
                    fixed.add(id(node))
            case operation if node.inputs and operation.can_be_computed_beforehand:
                if all(id(each) in fixed for each in node.inputs):
                    fixed.add(id(node))
    return fixed


class _Fusion:
    """One sweep that draws into each convolution what follows it and nothing else uses."""

    def __init__(self, outputs: Sequence[Expression], weights: Collection[str]) -> None:
        order = topological_order(outputs)
        self._fixed = _fixed(outputs, weights)
        self._uses = Counter(id(each) for each in chain(*(n.inputs for n in order), outputs))
        self._new: dict[int, Expression] = {}
        for node in order:
            self._new[id(node)] = self._rebuilt(node)
        self.outputs = [self._new[id(each)] for each in outputs]

    def _rebuilt(self, node: Expression) -> Expression:
        if id(node) not in self._fixed:
            fused = _first(self._begun(node), self._continued(node))
            if fused is not None:
                return reshape(fused, node.shape)
        inputs = tuple(self._new[id(each)] for each in node.inputs)
        return Expression(node.operation, inputs, node.shape, node.dtype)

    def _begun(self, node: Expression) -> Expression | None:
        """A convolution, or a product with a fixed matrix, as one that others are drawn into."""
        match node.operation:
            case Conv2D(windows=windows, groups=groups) if id(node.inputs[1]) in self._fixed:
                x, filters = (self._new[id(each)] for each in node.inputs)
            case MatMul() if self._multiplies_rows(node):
                windows, groups = POINTWISE, 1
                x, filters = (self._new[id(each)] for each in node.inputs)
                x = reshape(x, (x.shape[0], 1, 1, x.shape[1]))
                filters = reshape(filters, (1, 1, *filters.shape))
            case _:
                return None
        bias = broadcast_to(constant(0.0, x.dtype), (filters.shape[3],))
        return apply(FusedConvolution(windows, groups), x, filters, bias)

    def _multiplies_rows(self, node: Expression) -> bool:
        rows, matrix = node.inputs
        return rows.ndim == matrix.ndim == 2 and id(matrix) in self._fixed

    def _continued(self, node: Expression) -> Expression | None:
        """The convolution before ``node`` with that drawn into it; None where that cannot be."""
        match node.operation, node.inputs:
            case Add(), (a, b):
                return _first(
                    self._shifted(a, b, 1.0),
                    self._shifted(b, a, 1.0),
                    self._with_residual(b, a),
                    self._with_residual(a, b),
                )
            case Subtract(), (a, b):
                return self._shifted(a, b, -1.0)
            case Multiply(), (a, b):
                return _first(self._scaled(a, b), self._scaled(b, a))
            case Divide(), (a, b):
                return self._scaled(a, b, inverse=True)
            case LeakyRelu(slope=slope), (a,):
                return self._with_slope(a, slope)
            case Clip(low=low, high=high), (a,):
                return self._clipped(a, low, high)
        return None

    def _open(self, node: Expression) -> Expression | None:
        """The convolution that ``node`` shows, if nobody else reads it, before it is clipped."""
        fused = self._new[id(node)]
        while isinstance(fused.operation, Reshape) and fused.shape[-1] == fused.inputs[0].shape[-1]:
            (fused,) = fused.inputs
        match fused.operation:
            case FusedConvolution(epilogue=epilogue) if not epilogue.clips:
                return fused if self._uses[id(node)] == 1 else None
        return None

    def _linear(self, node: Expression) -> Expression | None:
        """The same, if nothing but scales and shifts was drawn into it so far."""
        fused = self._open(node)
        if fused is None or len(fused.inputs) > 3:
            return None
        return fused if _operation(fused).epilogue == Epilogue() else None

    def _per_channel(self, node: Expression, channels: int) -> Expression | None:
        """A fixed value for each channel, as (channels,)."""
        if id(node) not in self._fixed or node.shape[:-1] != (1,) * max(node.ndim - 1, 0):
            return None
        if node.size not in (1, channels):
            return None
        return broadcast_to(reshape(self._new[id(node)], (node.size,)), (channels,))

    def _shifted(self, node: Expression, shift: Expression, sign: float) -> Expression | None:
        fused = self._linear(node)
        values = None if fused is None else self._per_channel(shift, fused.shape[3])
        if fused is None or values is None:
            return None
        x, filters, bias = fused.inputs
        return apply(fused.operation, x, filters, bias + values if sign > 0 else bias - values)

    def _scaled(
        self, node: Expression, scale: Expression, inverse: bool = False
    ) -> Expression | None:
        fused = self._linear(node)
        values = None if fused is None else self._per_channel(scale, fused.shape[3])
        if fused is None or values is None:
            return None
        x, filters, bias = fused.inputs
        if inverse:
            return apply(fused.operation, x, filters / values, bias / values)
        return apply(fused.operation, x, filters * values, bias * values)

    def _with_residual(self, node: Expression, other: Expression) -> Expression | None:
        fused = self._open(node)
        if fused is None or len(fused.inputs) > 3 or other.shape != node.shape:
            return None
        return apply(fused.operation, *fused.inputs, reshape(self._new[id(other)], fused.shape))

    def _with_slope(self, node: Expression, slope: float) -> Expression | None:
        fused = self._open(node)
        if fused is None:
            return None
        operation = _operation(fused)
        has_residual = len(fused.inputs) > 3
        where = "residual_slope" if has_residual else "slope"
        if getattr(operation.epilogue, where) != LINEAR:
            return None
        epilogue = replace(operation.epilogue, **{where: slope})
        return apply(replace(operation, epilogue=epilogue), *fused.inputs)

    def _clipped(self, node: Expression, low: float, high: float) -> Expression | None:
        fused = self._open(node)
        if fused is None:
            return None
        operation = _operation(fused)
        epilogue = replace(operation.epilogue, low=low, high=high)
        return apply(replace(operation, epilogue=epilogue), *fused.inputs)


def _first(*found: Expression | None) -> Expression | None:
    return next((each for each in found if each is not None), None)


def _operation(node: Expression) -> FusedConvolution:
    assert isinstance(node.operation, FusedConvolution)
    return node.operation


def _planned(
    outputs: Sequence[Expression], pool: ThreadPool, reproducible: bool, compiled: bool
) -> list[Expression]:
    """The graph with an algorithm for each convolution."""
    new: dict[int, Expression] = {}
    for node in topological_order(outputs):
        inputs = tuple(new[id(each)] for each in node.inputs)
        same = Expression(node.operation, inputs, node.shape, node.dtype)
        if isinstance(node.operation, FusedConvolution):
            x, filters, bias, *residual = inputs
            if reproducible:
                piece = images_of_a_piece(node.operation.problem(node))
                x, *residual = (_filled_up(each, piece) for each in (x, *residual))
            whole = apply(node.operation, x, filters, bias, *residual)
            problem = node.operation.problem(whole)
            choice = choose(problem, pool.threads, reproducible, compiled, pool.gemm)
            planned = PlannedConvolution(problem, choice, pool)
            planned.reserve_scratch()
            prepared = apply(PreparedFilters(problem, choice.algorithm), filters)
            same = apply(planned, x, prepared, bias, *residual)[: node.shape[0]]
        new[id(node)] = same
    return [new[id(each)] for each in outputs]


def _filled_up(x: Expression, piece: int) -> Expression:
    """Images of zeros behind those of ``x``, so that ``piece`` divides their number."""
    zeros = np.zeros((-x.shape[0] % piece, *x.shape[1:]), x.dtype)
    return concatenate([x, constant(zeros)])


def _split(outputs: Sequence[Expression], weights: Collection[str]) -> Specialised:
    """What depends on the weights alone, made a variable where the rest reads it."""
    fixed = _fixed(outputs, weights)
    new: dict[int, Expression] = {}
    prepared: dict[str, Expression] = {}
    stand_ins: dict[int, Expression] = {}

    def stand_in(node: Expression) -> Expression:
        if id(node) not in fixed or isinstance(node.operation, Constant):
            return new[id(node)]
        if id(node) not in stand_ins:
            name = f"prepared/{len(prepared)}"
            prepared[name] = node
            stand_ins[id(node)] = variable(name, node.shape, node.dtype)
        return stand_ins[id(node)]

    for node in topological_order(outputs):
        if id(node) in fixed and not isinstance(node.operation, Constant):
            continue
        inputs = tuple(stand_in(each) for each in node.inputs)
        new[id(node)] = Expression(node.operation, inputs, node.shape, node.dtype)
    return Specialised([stand_in(each) for each in outputs], prepared)
