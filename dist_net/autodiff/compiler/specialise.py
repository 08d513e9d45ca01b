"""Inference: rewrite a network with constant weights so that it takes fewer passes over memory.

outputs ─fuse─▶ convolutions with scale, bias, activation, residual ─plan─▶ algorithms
        ─split─▶ nodes that depend on the weights alone, computed once: the *prepared* arrays
                 nodes that also depend on the inputs, computed for every batch
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from dist_net.autodiff.compiler.rewrite import rewrite
from dist_net.autodiff.expression import (
    Constant,
    Expression,
    Operation,
    Variable,
    View,
    apply,
    constant,
    topological_order,
    variable,
)
from dist_net.autodiff.kernels.convolution.choice import Algorithm, choose, images_of_a_piece
from dist_net.autodiff.kernels.convolution.im2row import Im2Row
from dist_net.autodiff.kernels.convolution.problem import LINEAR, Epilogue, Problem
from dist_net.autodiff.kernels.gemm import Gemm
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import POINTWISE
from dist_net.autodiff.operations import elementwise
from dist_net.autodiff.operations.convolution import (
    Conv2D,
    Conv2DInputGradient,
    FusedConvolution,
    PlannedConvolution,
    PreparedFilters,
)
from dist_net.autodiff.operations.elementwise import add, divide, multiply, subtract
from dist_net.autodiff.operations.fused import defined
from dist_net.autodiff.operations.matmul import MatMul
from dist_net.autodiff.operations.reduction import broadcast_to
from dist_net.autodiff.operations.shaping import Reshape, concatenate, reshape

LEAST_OUTPUTS = 8
"""The least number of a convolution's outputs; there are zeros beside fewer."""
BinaryFunction = Callable[[Expression, Expression], Expression]


class Specialised(NamedTuple):
    """``outputs``: functions of the inputs and the prepared arrays. ``prepared``: these arrays by
    name, functions of the weights."""

    outputs: list[Expression]
    prepared: dict[str, Expression]


def specialise(
    outputs: Sequence[Expression],
    weights: Collection[str],
    pool: ThreadPool,
    reproducible: bool = False,
    compiled: bool = False,
) -> Specialised:
    """Return the graph of ``outputs`` for fixed ``weights``, given as names of variables.

    ``pool`` computes convolutions and products with a fixed matrix. See ``choose`` for the others.
    """
    return _split(_planned(outputs, weights, pool, reproducible, compiled), weights)


def fused(
    outputs: Sequence[Expression], weights: Collection[str], pool: ThreadPool, compiled: bool
) -> list[Expression]:
    """Return the graph of ``outputs`` for ``weights`` that may change from run to run."""
    return _planned(outputs, weights, pool, False, compiled, exact=True)


def mark_per_batch(
    outputs: Sequence[Expression], others: Sequence[Expression], weights: Collection[str]
) -> list[Expression]:
    """Return ``outputs`` such that no fixed value with a row per input is computed beforehand.

    ``others`` is the same graph for another number of inputs. An example is a class token that is
    broadcast: as a prepared array it would have the rows of one batch size. Graphs that cannot be
    compared, since they have other numbers of nodes, are returned as they are.
    """
    fixed = _fixed(outputs, weights)
    new: dict[int, Expression] = {}
    order, other_order = topological_order(outputs), topological_order(others)
    if len(order) != len(other_order):
        return [*outputs]
    for node, other in zip(order, other_order, strict=True):
        inputs = [new[id(each)] for each in node.inputs]
        is_per_batch = id(node) in fixed and not _is_same(node.operation, other.operation)
        if is_per_batch:
            inputs = [apply(PerBatch(), each) for each in inputs]
        rebuilt = node.with_inputs(inputs)
        new[id(node)] = apply(PerBatch(), rebuilt) if is_per_batch and not inputs else rebuilt
    return [new[id(each)] for each in outputs]


def _is_same(operation: Operation, other: Operation) -> bool:
    if isinstance(operation, Constant) and isinstance(other, Constant):
        a, b = operation.value, other.value
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    return operation == other


class PerBatch(View):
    """The identity, computed by plans: equal only to itself, it is never computed beforehand."""

    keeps_contiguous = True


def folded(outputs: Sequence[Expression], weights: Collection[str]) -> Specialised:
    """Specialise for export: a convolution by weights is a FusedConvolution, a product a MatMul."""
    plain = rewrite(defined(outputs))
    return _split(_Fusion(plain, weights, takes_products=False).outputs, weights)


def _fixed(nodes: Sequence[Expression], weights: Collection[str]) -> set[int]:
    """Return the ids of the nodes that depend on weights and constants alone."""
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
    """Fuse each convolution, and product if ``takes_products``, with successors of one reader."""

    def __init__(
        self, outputs: Sequence[Expression], weights: Collection[str], takes_products: bool = True
    ) -> None:
        order = topological_order(outputs)
        self._takes_products = takes_products
        self._fixed = _fixed(outputs, weights)
        self._uses = Counter(id(each) for each in chain(*(n.inputs for n in order), outputs))
        self._new: dict[int, Expression] = {}
        for node in order:
            self._new[id(node)] = self._rebuilt(node)
        self.outputs = [self._new[id(each)] for each in outputs]

    def _rebuilt(self, node: Expression) -> Expression:
        if id(node) not in self._fixed:
            fused = _first(self._as_convolution(node), self._fused_into_convolution(node))
            if fused is not None:
                return reshape(fused, node.shape)
        return node.with_inputs(self._new[id(each)] for each in node.inputs)

    def _as_convolution(self, node: Expression) -> Expression | None:
        """Return a convolution or a product with a fixed matrix as a fusible convolution."""
        if len(node.inputs) != 2 or id(node.inputs[1]) not in self._fixed:
            return None
        x, filters = (self._new[id(each)] for each in node.inputs)
        match node.operation:
            case Conv2D(windows=windows, groups=groups):
                pass
            case MatMul() if self._takes_products and node.ndim == 2:
                windows, groups = POINTWISE, 1
                x = reshape(x, (x.shape[0], 1, 1, x.shape[1]))
                filters = reshape(filters, (1, 1, *filters.shape))
            case _:
                return None
        bias = broadcast_to(constant(0.0, x.dtype), (filters.shape[3],))
        return apply(FusedConvolution(windows, groups), x, filters, bias)

    def _fused_into_convolution(self, node: Expression) -> Expression | None:
        """Return the preceding convolution with ``node`` fused into it; None if impossible."""
        match node.operation, node.inputs:
            case elementwise.add, (a, b):
                return _first(
                    self._with_values(a, b, add),
                    self._with_values(b, a, add),
                    self._with_residual(b, a),
                    self._with_residual(a, b),
                )
            case elementwise.subtract, (a, b):
                return self._with_values(a, b, subtract)
            case elementwise.multiply, (a, b):
                return _first(self._with_values(a, b, multiply), self._with_values(b, a, multiply))
            case elementwise.divide, (a, b):
                return self._with_values(a, b, divide)
            case elementwise.relu, (a,):
                return self._with_slope(a, 0.0)
            case elementwise.leaky, (a, Expression(operation=Constant(slope))):
                return self._with_slope(a, float(slope))
            case elementwise.clipped, (
                a,
                Expression(operation=Constant(low)),
                Expression(operation=Constant(high)),
            ):
                fused = self._convolution_at(a)
                limits = {"low": float(low), "high": float(high)}
                return None if fused is None else _with_epilogue(fused, **limits)
        return None

    def _convolution_at(self, node: Expression) -> Expression | None:
        """Return the convolution that computes ``node``, if it has one reader and no clipping."""
        fused = self._new[id(node)]
        while isinstance(fused.operation, Reshape) and fused.shape[-1] == fused.inputs[0].shape[-1]:
            (fused,) = fused.inputs
        match fused.operation:
            case FusedConvolution(epilogue=epilogue) if not epilogue.clips:
                return fused if self._uses[id(node)] == 1 else None
        return None

    def _with_values(
        self, node: Expression, other: Expression, function: BinaryFunction
    ) -> Expression | None:
        """Fuse add, subtract, multiply or divide with ``other``, one fixed value per channel.

        None for another ``other``, or unless only scales and shifts have been fused so far.
        """
        fused = self._convolution_at(node)
        if fused is None or len(fused.inputs) > 3 or _epilogue(fused) != Epilogue():
            return None
        if id(other) not in self._fixed or other.shape[:-1] != (1,) * max(other.ndim - 1, 0):
            return None
        if other.size not in (1, fused.shape[3]):
            return None
        one_axis = reshape(self._new[id(other)], (other.size,))
        values = broadcast_to(one_axis, (fused.shape[3],))
        x, filters, bias = fused.inputs
        if function in (multiply, divide):
            filters = function(filters, values)
        return apply(fused.operation, x, filters, function(bias, values))

    def _with_residual(self, node: Expression, other: Expression) -> Expression | None:
        fused = self._convolution_at(node)
        if fused is None or len(fused.inputs) > 3 or other.shape != node.shape:
            return None
        return apply(fused.operation, *fused.inputs, reshape(self._new[id(other)], fused.shape))

    def _with_slope(self, node: Expression, slope: float) -> Expression | None:
        fused = self._convolution_at(node)
        if fused is None:
            return None
        name = "residual_slope" if len(fused.inputs) > 3 else "slope"
        is_linear = getattr(_epilogue(fused), name) == LINEAR
        return _with_epilogue(fused, **{name: slope}) if is_linear else None


def _first(*found: Expression | None) -> Expression | None:
    return next((each for each in found if each is not None), None)


def _epilogue(fused: Expression) -> Epilogue:
    assert isinstance(fused.operation, FusedConvolution)
    return fused.operation.epilogue


def _with_epilogue(fused: Expression, **changes: float) -> Expression:
    assert isinstance(fused.operation, FusedConvolution)
    epilogue = replace(fused.operation.epilogue, **changes)
    return apply(replace(fused.operation, epilogue=epilogue), *fused.inputs)


def _planned(
    outputs: Sequence[Expression],
    weights: Collection[str],
    pool: ThreadPool,
    reproducible: bool,
    compiled: bool,
    exact: bool = False,
) -> list[Expression]:
    """Return the graph with fused operations and an algorithm for each convolution."""
    graph = _Fusion(rewrite(outputs if compiled else defined(outputs)), weights).outputs
    new: dict[int, Expression] = {}
    for node in topological_order(graph):
        inputs = tuple(new[id(each)] for each in node.inputs)
        planned = node.with_inputs(inputs)
        if isinstance(node.operation, FusedConvolution):
            x, filters, bias, *residual = inputs
            if node.operation.groups == 1:  # loops compute a vector of outputs at least
                filters, bias, *residual = (
                    _filled(each, LEAST_OUTPUTS, -1) for each in (filters, bias, *residual)
                )
            if reproducible:
                piece = images_of_a_piece(node.operation.problem(node), compiled, pool.gemm)
                count = -(-x.shape[0] // piece) * piece
                x, *residual = (_filled(each, count) for each in (x, *residual))
            whole = apply(node.operation, x, filters, bias, *residual)
            problem = node.operation.problem(whole)
            choice = choose(problem, pool.threads, reproducible, compiled, pool.gemm, exact)
            operation = PlannedConvolution(problem, choice, pool)
            choice.reserve_scratch(problem, pool)
            prepared = _prepared(problem, choice.algorithm, filters)
            planned = apply(operation, x, prepared, bias, *residual)
            planned = planned[: node.shape[0], ..., : node.shape[3]]
        elif isinstance(node.operation, Conv2DInputGradient) and reproducible:
            # Image by image: its kernel's products have the rows of several images.
            images = [inputs[0][i : i + 1] for i in range(node.shape[0])]
            planned = concatenate([apply(node.operation, each, inputs[1]) for each in images])
        new[id(node)] = planned
    return [new[id(each)] for each in graph]


def _prepared(problem: Problem, algorithm: Algorithm, filters: Expression) -> Expression:
    """Return the filters in the layout of an algorithm; without a copy, if that is their own."""
    if isinstance(algorithm, Im2Row) and type(algorithm.gemm) is Gemm and problem.groups == 1:
        return reshape(filters, algorithm.prepared_shape(problem))
    return apply(PreparedFilters(problem, algorithm), filters)


def _filled(x: Expression, least: int, axis: int = 0) -> Expression:
    """Return ``x`` with zeros behind it along an axis, at least ``least`` elements."""
    shape = [*x.shape]
    shape[axis] = max(0, least - x.shape[axis])
    return concatenate([x, constant(np.zeros(shape, x.dtype))], axis)


def _split(outputs: Sequence[Expression], weights: Collection[str]) -> Specialised:
    """Replace every node that depends on the weights alone by a variable."""
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
        new[id(node)] = node.with_inputs(stand_in(each) for each in node.inputs)
    return Specialised([stand_in(each) for each in outputs], prepared)
