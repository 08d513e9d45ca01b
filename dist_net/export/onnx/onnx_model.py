"""A model as an ONNX graph, for any number of inputs.

Our expressions have fixed shapes, while the first axis of an ONNX graph may have any length. So the
network is built for two numbers of inputs: lengths and values that differ depend on that number.

Decoded images are resized as in ``dist_net.images.fitting``. ONNX leaves the rounding of resized
pixels to the program that runs the graph: ONNX Runtime's pixels differ from Pillow's by at most 2
of 255, and most are equal. Darknet's letterbox differs in the last row, which the reference leaves
almost black at some sizes.
"""

from collections.abc import Callable, Mapping
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
from dist_net.export.onnx.translation import (
    CHANNELS_LAST,
    CHANNELS_SECOND,
    Attribute,
    Graph,
    KnownArray,
    Translation,
    integers,
)
from dist_net.ground.vector import Vector
from dist_net.nn import Model, Scope

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
        return [(type(x.operation), [places[id(each)] for each in x.inputs]) for x in self.order]

    def value(self, node: Expression) -> KnownArray | None:
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
    pairs = zip(graph.prepared.items(), values, strict=True)
    arrays = {name: KnownArray(_name_of(node, trained), array) for (name, node), array in pairs}
    return _BuiltNetwork(graph.outputs[0], topological_order(graph.outputs), arrays)


def _name_of(node: Expression, trained: set[str]) -> str:
    """Name an array after the last weight of its size: scaled filters kernel, a shift beta."""
    of_size = [each.operation for each in topological_order([node]) if each.size == node.size]
    names = [each.name for each in of_size if isinstance(each, Variable)]
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
    if first.ndim == 0 or first.shape[1:] != second.shape[1:]:
        return False
    return bool((first == first[:1]).all() and (second == first[:1]).all())


LUMA = np.array([19595, 38470, 7471], np.int32)
"""The shares of red, green and blue in grey (ITU-R BT.601), in 65536ths, as in Pillow."""

LINEAR: dict[str, Attribute] = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
CUBIC: dict[str, Attribute] = LINEAR | {"mode": "cubic", "cubic_coeff_a": -0.5}
"""Pillow's filters: antialiased, without pixels from outside the map."""

Fit = Callable[[Graph, str, int, int], str]
"""From maps (N, C, H, W) uint8 of any size to (N, C, height, width)."""


def add_preprocessing(graph: Graph, model: Model, fitting: str) -> str:
    """Add the input ``images``, (N, H, W, 3) uint8 of any size; return the network's inputs."""
    height, width, *channels = model.input_shape
    size: tuple[int | str, int | str] = (height, width) if fitting == "exact" else ("H", "W")
    pixels = graph.input("images", np.uint8, ("N", *size, 3))
    if channels != [3]:
        pixels = _grey(graph, pixels)
    maps = graph.transposed(pixels, CHANNELS_SECOND)
    fitted = GRAPH_FITTINGS[fitting](graph, maps, height, width)
    if channels:
        return graph.transposed(fitted, CHANNELS_LAST)
    return graph.add("Squeeze", fitted, integers(1))


def _grey(graph: Graph, pixels: str) -> str:
    shares = graph.add("Mul", graph.cast(pixels, np.int32), LUMA)
    luma = graph.add("ReduceSum", shares, integers(3), keepdims=1)
    rounded = graph.add("Add", luma, np.array(1 << 15, np.int32))
    return graph.cast(graph.add("Div", rounded, np.array(1 << 16, np.int32)), np.uint8)


def _pad(graph: Graph, maps: str, height: int, width: int) -> str:
    size, target = _shape(graph, maps, 2, 4), integers(height, width)
    ratios = graph.add("Div", target.astype(np.float64), graph.cast(size, np.float64))
    scale = graph.add("ReduceMin", ratios, keepdims=1)
    scaled = graph.add("Round", graph.add("Mul", graph.cast(size, np.float64), scale))
    inner = graph.add("Max", graph.cast(scaled, np.int64), integers(1))
    zero = np.array(0, np.uint8)
    return _in_the_middle(graph, _resized(graph, maps, inner), inner, target, zero)


def _crop(graph: Graph, maps: str, height: int, width: int) -> str:
    target = integers(height, width)
    wanted = target.astype(np.float64)
    ratios = graph.add("Div", wanted, graph.cast(_shape(graph, maps, 2, 4), np.float64))
    scale = graph.add("ReduceMax", ratios, keepdims=1)
    kept = graph.cast(graph.add("Round", graph.add("Div", wanted, scale)), np.int64)
    return _resized(graph, _middle(graph, maps, kept), target)


def _imagenet(graph: Graph, maps: str, height: int, width: int) -> str:
    down, across = _shape(graph, maps, 2, 3), _shape(graph, maps, 3, 4)
    by_height = graph.add("Mul", down, integers(7, 7 * width))
    by_height = graph.add("Div", by_height, integers(8, 8 * height))
    by_width = graph.add("Mul", across, integers(7 * height, 7))
    by_width = graph.add("Div", by_width, integers(8 * width, 8))
    products = graph.add("Mul", across, integers(height)), graph.add("Mul", down, integers(width))
    is_wide = graph.add("Greater", *products)
    kept = graph.add("Where", is_wide, by_height, by_width)
    return _resized(graph, _middle(graph, maps, kept), integers(height, width), CUBIC)


def _letterbox(graph: Graph, maps: str, height: int, width: int) -> str:
    size, target = _shape(graph, maps, 2, 4), integers(height, width)
    down, across = _shape(graph, maps, 2, 3), _shape(graph, maps, 3, 4)
    to_width = graph.add("Div", graph.add("Mul", size, integers(width)), across)
    to_height = graph.add("Div", graph.add("Mul", size, integers(height)), down)
    ratio = graph.add("Div", np.array([width], np.float32), graph.cast(across, np.float32))
    other = graph.add("Div", np.array([height], np.float32), graph.cast(down, np.float32))
    is_wide = graph.add("Less", ratio, other)
    inner = graph.add("Where", is_wide, to_width, to_height)
    values = graph.add("Div", graph.cast(maps, np.float32), np.array(255, np.float32))
    how = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    resized = _resized(graph, values, inner, how)
    return _in_the_middle(graph, resized, inner, target, np.array(0.5, np.float32))


GRAPH_FITTINGS: dict[str, Fit] = {
    "pad": _pad,
    "crop": _crop,
    "stretch": lambda graph, maps, *size: _resized(graph, maps, integers(*size)),
    "exact": lambda _graph, maps, *_size: maps,
    "imagenet": _imagenet,
    "letterbox": _letterbox,
}
"""The fittings of recipes by name, and that of Darknet's nets."""


def _resized(
    graph: Graph, maps: str, size: str | Array, how: Mapping[str, Attribute] = LINEAR
) -> str:
    """Resize to (height, width), by default like Pillow's bilinear filter."""
    shape = graph.add("Concat", _shape(graph, maps, 0, 2), size, axis=0)
    return graph.add("Resize", maps, "", "", shape, **how)


def _middle(graph: Graph, maps: str, kept: str) -> str:
    """Return the central ``kept`` rows and columns of the maps, at least one of each."""
    size = _shape(graph, maps, 2, 4)
    kept = graph.add("Min", graph.add("Max", kept, integers(1)), size)
    start = _half_of_difference(graph, size, kept)
    return graph.add("Slice", maps, start, graph.add("Add", start, kept), integers(2, 3))


def _in_the_middle(graph: Graph, maps: str, inner: str, target: Array, value: Array) -> str:
    before = _half_of_difference(graph, target, inner)
    after = graph.add("Sub", graph.add("Sub", target, inner), before)
    none = integers(0, 0)
    return graph.add("Pad", maps, graph.add("Concat", none, before, none, after, axis=0), value)


def _half_of_difference(graph: Graph, larger: str | Array, smaller: str) -> str:
    return graph.add("Div", graph.add("Sub", larger, smaller), integers(2))


def _shape(graph: Graph, maps: str, start: int, end: int) -> str:
    """Return the shape of (N, C, H, W) from axis ``start`` to ``end``."""
    return graph.add("Shape", maps, start=start, end=end)
