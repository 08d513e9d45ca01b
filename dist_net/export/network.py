"""A network with its weights as nodes of a graph, for any number of inputs.

Our expressions have fixed shapes, and ONNX's first axis may have any length. So the network is
built for two numbers of inputs: what is the same in both is fixed, and what differs depends on the
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from dist_net.autodiff import Array, Expression, evaluate
from dist_net.autodiff.compiler.specialise import folded
from dist_net.autodiff.expression import Constant, Variable, topological_order
from dist_net.autodiff.operations.reduction import BroadcastTo
from dist_net.autodiff.operations.shaping import Reshape
from dist_net.autodiff.operations.slicing import Slice, ZerosAround
from dist_net.errors import NotExportableError, ShapeError
from dist_net.export.graph import Graph
from dist_net.export.operations import converter_of
from dist_net.export.translation import KnownArray, Tensor, Translation, own_axes
from dist_net.nn import Model, Scope
from dist_net.vector import Vector

COUNTS = 11, 13
"""Two numbers of inputs; primes, so that few lengths are multiples of them by chance."""

HAS_LENGTHS = Reshape | BroadcastTo | Slice | ZerosAround
"""Operations that hold lengths, which may depend on the number of inputs."""


def add_network(graph: Graph, model: Model, weights: Vector, inputs: Tensor) -> str:
    """Adds the nodes from ``inputs`` to the network's outputs, whose name is returned.

    Raises NotExportableError, which names the operation, if ONNX cannot express one.
    """
    here, there = (_BuiltNetwork.of(model, weights, count) for count in COUNTS)
    known = Translation(graph, inputs, COUNTS)
    if here.structure != there.structure:
        raise NotExportableError(
            f"the network has other operations for {COUNTS[0]} inputs than for {COUNTS[1]}; "
            f"expected the same for any number of inputs"
        )
    for node, other in zip(here.order, there.order, strict=True):
        known.meet(node, other)
        value = here.value(node)
        if value is not None:
            _place_value(known, node, value, there.value(other))
        elif isinstance(node.operation, Variable):
            known.hold(node, inputs)
        else:
            convert = converter_of(node)
            _require_alike(node, other)
            known.hold(node, convert(known, node))
    return known.named(here.output)


@dataclass(frozen=True)
class _BuiltNetwork:
    """The network for a number of inputs; ``arrays`` are what depends on the weights alone."""

    output: Expression
    order: list[Expression]
    arrays: dict[str, KnownArray]

    @classmethod
    def of(cls, model: Model, weights: Vector, count: int) -> Self:
        try:
            output = model.network(model.input(count), Scope())
        except ShapeError as error:
            raise NotExportableError(
                f"the network takes no {count} inputs at once: {error}; expected any number"
            ) from error
        graph = folded([output], [name for name, _ in model.layout.shapes])
        values = evaluate(list(graph.prepared.values()), **model.layout.views(weights))
        trained = {each.name for each in model.layout.parameters}
        arrays = {
            name: KnownArray(_name_of(node, trained), array)
            for (name, node), array in zip(graph.prepared.items(), values, strict=True)
        }
        return cls(graph.outputs[0], topological_order(graph.outputs), arrays)

    @property
    def structure(self) -> list[tuple[type, list[int]]]:
        """Each operation's type, and which operations it reads, by their places in the order."""
        places = {id(node): place for place, node in enumerate(self.order)}
        return [
            (type(node.operation), [places[id(each)] for each in node.inputs])
            for node in self.order
        ]

    def value(self, node: Expression) -> KnownArray | None:
        """The node's value, if it does not depend on the inputs."""
        match node.operation:
            case Constant(value=value):
                return KnownArray("constant", value)
            case Variable(name=name):
                return self.arrays.get(name)
        return None


def _name_of(node: Expression, trained: set[str]) -> str:
    """What an array that is computed from weights is called: as the last like it among them.

    So filters with folded scales are called ``kernel``, and what is added after them ``beta``.
    """
    weights = [
        each
        for each in topological_order([node])
        if isinstance(each.operation, Variable) and each.size == node.size
    ]
    names = [each.operation.name for each in weights if isinstance(each.operation, Variable)]
    return next((name for name in reversed(names) if name in trained), [*names, "folded"][0])


def _require_alike(node: Expression, other: Expression) -> None:
    if not node.size:
        raise NotExportableError(f"{node} has no elements; expected one at least")
    if node.operation != other.operation and not isinstance(node.operation, HAS_LENGTHS):
        raise NotExportableError(
            f"{node.operation} for {COUNTS[0]} inputs and {other.operation} for {COUNTS[1]}; "
            f"expected the same for any number of inputs"
        )


def _place_value(
    known: Translation, node: Expression, value: KnownArray, other: KnownArray | None
) -> None:
    """Makes the value of a node known, or adds what computes it from the number of inputs."""
    here, there = value.array, None if other is None else other.array
    if there is not None and np.array_equal(here, there, equal_nan=True):
        known.know(node, value)
    elif there is not None and _is_row_repeated(here, there):
        row = known.graph.constant(here[:1], value.name)
        known.hold(node, Tensor(known.expanded(row, node, own_axes(node)), own_axes(node)))
    elif there is not None and _is_ramp(here) and _is_ramp(there) and here[1] == there[1]:
        known.hold(node, Tensor(_ramp(known, here), own_axes(node)))
    else:
        raise NotExportableError(
            f"the network holds a constant {node.dtype}{list(node.shape)} that depends on the "
            f"number of inputs, as in a mean over all of them; expected that an input's outputs do "
            f"not depend on others"
        )


def _is_row_repeated(here: Array, there: Array) -> bool:
    """Whether both arrays repeat one row, along their first axes."""
    if here.ndim == 0 or here.shape[1:] != there.shape[1:]:
        return False
    return bool((here == here[:1]).all() and (there == here[:1]).all())


def _is_ramp(array: Array) -> bool:
    """Whether these are the integers 0, step, 2 · step, ..."""
    if array.ndim != 1 or len(array) < 2 or array.dtype != np.int64:
        return False
    return bool((array == np.arange(len(array)) * array[1]).all())


def _ramp(known: Translation, array: Array) -> str:
    step = int(array[1])
    end = known.multiple(len(array) // COUNTS[0] * step)
    end = known.graph.add("Reshape", end, np.empty(0, np.int64))
    return known.graph.add("Range", np.array(0), end, np.array(step))
