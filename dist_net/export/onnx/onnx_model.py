"""A model as an ONNX graph, for any number of inputs.

Our expressions have fixed shapes, while the first axis of an ONNX graph may have any length. So the
network is built for two numbers of inputs: lengths and values that differ depend on that number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dist_net.autodiff import Array, Expression, evaluate
from dist_net.autodiff.compiler.specialise import folded
from dist_net.autodiff.expression import Constant, Variable, topological_order
from dist_net.autodiff.operations.records import FieldOf, RecordOf
from dist_net.autodiff.operations.reduction import BroadcastTo
from dist_net.autodiff.operations.shaping import Reshape, Slice, ZerosAround
from dist_net.errors import ExportError, ShapeError
from dist_net.export.exported_model import ExportedModel
from dist_net.export.onnx.operations import converter_of
from dist_net.export.onnx.preprocessing import add_preprocessing
from dist_net.export.onnx.translation import Graph, KnownArray, Translation
from dist_net.nn import Model, Scope
from dist_net.vector import Vector

COUNTS = 11, 13
"""The two numbers of inputs; primes, so that few lengths are multiples of them by chance."""

HAS_LENGTHS = Reshape | BroadcastTo | Slice | ZerosAround
"""Operations that hold lengths, which may depend on the number of inputs."""


def onnx_graph(exported: ExportedModel) -> Graph:
    """Return the graph from ``input`` to ``logits``, ``probabilities`` or ``outputs``.

    Several inputs and outputs have the names of their fields. Inputs are (N, *input_shape). With
    ``takes_images``, they are ``images``, (N, H, W, 3) uint8 of any size, and a classifier's
    outputs are probabilities. Raise ``ExportError``.
    """
    found, takes_images = exported.found, exported.takes_images
    model = found.own_model
    names = *model.input_fields, *model.output_fields
    graph = Graph("input", "images", "logits", "probabilities", "outputs", *names)
    if takes_images:
        if not found.takes_images:
            raise ExportError(
                f"{exported.name} has inputs of {model.input_dtype}{list(model.input_shape)}; "
                f"expected a model of images for --preprocessing"
            )
        inputs = {"": add_preprocessing(graph, model, exported.fitting)}
    else:
        inputs = {
            field: graph.input(field or "input", dtype, ("N", *shape))
            for field, (dtype, shape) in model.input_fields.items()
        }
    outputs = add_network(graph, model, exported.weights, inputs)
    is_classifier, has_logits = bool(found.labels), found.has_logits
    if takes_images and is_classifier and has_logits:
        outputs, has_logits = {"": graph.add("Softmax", outputs[""], axis=-1)}, False
    name = ("logits" if has_logits else "probabilities") if is_classifier else "outputs"
    for field, (dtype, shape) in model.output_fields.items():
        graph.output(outputs[field], field or name, dtype, ("N", *shape))
    graph.prune()
    return graph


def add_network(
    graph: Graph, model: Model, weights: Vector, inputs: Mapping[str, str]
) -> dict[str, str]:
    """Add the nodes that compute the network; return the name of the tensor of each output.

    ``inputs`` and the result have the keys of ``Model.input_fields`` and ``output_fields``. Raise
    ``ExportError``, which names the operation, if ONNX cannot express one.
    """
    first, second = (_built(model, weights, count) for count in COUNTS)
    if first.structure != second.structure:
        raise ExportError(
            f"the network has other operations for {COUNTS[0]} inputs than for {COUNTS[1]}; "
            f"expected the same for any number of inputs"
        )
    others = {id(node): other for node, other in zip(first.order, second.order, strict=True)}
    known = Translation(graph, next(iter(inputs.values())), COUNTS, others)
    for node in first.order:
        value, other = first.value(node), known.other(node)
        if value is not None:
            _add_value(known, node, value, second.value(other))
        elif isinstance(node.operation, FieldOf):
            known.hold(node, inputs[node.operation.name])
        elif isinstance(node.operation, Variable) and "" in inputs:
            known.hold(node, inputs[""])
        elif not isinstance(node.operation, Variable | RecordOf):
            convert = converter_of(node)
            _require_alike(node, other)
            known.hold(node, convert(known, node))
    output = first.output
    if not isinstance(output.operation, RecordOf):
        return {"": known.named(output)}
    fields = zip(output.operation.names, output.inputs, strict=True)
    return {name: known.named(each) for name, each in fields}


@dataclass(frozen=True)
class _BuiltNetwork:
    """The network for a number of inputs; ``arrays`` depend on the weights alone."""

    output: Expression
    order: list[Expression]
    arrays: dict[str, KnownArray]

    @property
    def structure(self) -> list[tuple[type, list[int]]]:
        """The type of each operation, and the positions of its inputs in the order."""
        places = {id(node): place for place, node in enumerate(self.order)}
        return [
            (type(node.operation), [places[id(each)] for each in node.inputs])
            for node in self.order
        ]

    def value(self, node: Expression) -> KnownArray | None:
        """Return the node's value, or None if it depends on the inputs."""
        match node.operation:
            case Constant(value=value):
                return KnownArray("constant", value)
            case Variable(name=name):
                return self.arrays.get(name)
        return None


def _built(model: Model, weights: Vector, count: int) -> _BuiltNetwork:
    try:
        output = model.network(model.input(count), Scope())
    except ShapeError as error:
        raise ExportError(
            f"the network does not accept {count} inputs at once: {error}; expected any number"
        ) from error
    graph = folded([output], dict(model.layout.shapes))
    values = evaluate(list(graph.prepared.values()), **model.layout.views(weights))
    trained = {each.name for each in model.layout.parameters}
    arrays = {
        name: KnownArray(_name_of(node, trained), array)
        for (name, node), array in zip(graph.prepared.items(), values, strict=True)
    }
    return _BuiltNetwork(graph.outputs[0], topological_order(graph.outputs), arrays)


def _name_of(node: Expression, trained: set[str]) -> str:
    """Return the name of an array computed from weights: that of the last weight of its size.

    So filters with folded scales are called ``kernel``, and the shift after them ``beta``.
    """
    names = [
        each.operation.name
        for each in topological_order([node])
        if isinstance(each.operation, Variable) and each.size == node.size
    ]
    return next((name for name in reversed(names) if name in trained), [*names, "folded"][0])


def _require_alike(node: Expression, other: Expression) -> None:
    if not node.size:
        raise ExportError(f"{node} has no elements; expected at least one")
    if node.operation != other.operation and not isinstance(node.operation, HAS_LENGTHS):
        raise ExportError(
            f"{node.operation} for {COUNTS[0]} inputs and {other.operation} for {COUNTS[1]}; "
            f"expected the same for any number of inputs"
        )


def _add_value(
    known: Translation, node: Expression, value: KnownArray, other: KnownArray | None
) -> None:
    """Record a node's value, or add the nodes that compute it from the number of inputs."""
    first, second = value.array, None if other is None else other.array
    if second is not None and np.array_equal(first, second, equal_nan=True):
        known.know(node, value)
    elif second is not None and _is_row_repeated(first, second):
        row = known.graph.constant(first[:1], value.name)
        known.hold(node, known.expanded(row, node))
    else:
        raise ExportError(
            f"the network contains a constant {node.dtype}{list(node.shape)} that depends on the "
            f"number of inputs, as in a mean over the batch, sort and top_k; expected outputs that "
            f"depend on one input each, by other operations"
        )


def _is_row_repeated(first: Array, second: Array) -> bool:
    """Return whether both arrays repeat the same row."""
    if first.ndim == 0 or first.shape[1:] != second.shape[1:]:
        return False
    return bool((first == first[:1]).all() and (second == first[:1]).all())
