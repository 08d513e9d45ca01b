"""The tensors of a graph that contain the values of expressions.

ONNX's convolutions and pools take and return maps with the channels second. Each is placed between
two Transposes; those that follow each other are merged or left out.

Operators: https://onnx.ai/onnx/operators, opset 18. Needs the extra ``onnx``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike
from onnx import NodeProto, ValueInfoProto, checker, helper, numpy_helper

from dist_net.autodiff import Array, Expression
from dist_net.errors import ExportError

Axes = tuple[int, ...]
Attribute: TypeAlias = "int | float | str | tuple[int, ...]"

OPSET = 18
IR_VERSION = 8
"""The first version with this opset, so that older programs can read the file."""
CHANNELS_SECOND: Axes = (0, 3, 1, 2)
CHANNELS_LAST: Axes = (0, 2, 3, 1)
MAX_SHARED = 16  # elements; larger constants are not compared with each other


class Graph:
    """Nodes in the order of computation, and constants; inputs and outputs are ``reserved``."""

    def __init__(self, *reserved: str) -> None:
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self._taken = set(reserved)
        self.counts: dict[str, int] = {}
        self._known: dict[object, str] = {}
        self._transposed: dict[str, tuple[str, Axes]] = {}

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph and return its name; a variable length is a name."""
        self.inputs.append(helper.make_tensor_value_info(name, element_type(dtype), shape))
        return name

    def add(self, operator: str, *inputs: str | Array, **attributes: Attribute) -> str:
        """Add a node, unless an equal one exists; return its output. Arrays become constants."""
        names = tuple(each if isinstance(each, str) else self.constant(each) for each in inputs)
        identity = operator, names, tuple(attributes.items())
        if identity not in self._known:
            output = self._new_name(operator.lower())
            self.nodes.append(helper.make_node(operator, names, [output], output, **attributes))
            self._known[identity] = output
        return self._known[identity]

    def transposed(self, tensor: str, axes: Axes) -> str:
        """Return the name of a tensor whose axis i is the given tensor's axis ``axes[i]``."""
        source, first = self._transposed.get(tensor, (tensor, tuple(range(len(axes)))))
        order = tuple(first[axis] for axis in axes)
        if order == tuple(range(len(order))):
            return source
        result = self.add("Transpose", source, perm=order)
        self._transposed[result] = source, order
        return result

    def cast(self, tensor: str, dtype: DTypeLike) -> str:
        return self.add("Cast", tensor, to=element_type(dtype))

    def constant(self, array: Array, name: str = "constant") -> str:
        """Return an array's name: ``name``, if it is free. Equal small arrays are stored once."""
        is_small = array.size <= MAX_SHARED
        identity = array.dtype, array.shape, array.tobytes() if is_small else id(array)
        if identity not in self._known:
            self._known[identity] = self._new_name(name)
            self.initializers[self._known[identity]] = array
        return self._known[identity]

    def output(self, tensor: str, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> None:
        """Declare ``tensor`` an output of the graph: ``name``, or ``name_output`` if an input has
        that name. A tensor may be several outputs."""
        if any(name == each.name for each in self.inputs):  # names are unique in a graph
            name = self._new_name(f"{name}_output")
        self.nodes.append(helper.make_node("Identity", [tensor], [name], name))
        self.outputs.append(helper.make_tensor_value_info(name, element_type(dtype), shape))

    def prune(self) -> None:
        needed = {output.name for output in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        arrays = self.initializers.items()
        self.initializers = {name: array for name, array in arrays if name in needed}

    def model_bytes(self, version: str, metadata: Mapping[str, str]) -> bytes:
        """Return the content of an ONNX file with this graph and these properties."""
        arrays = self.initializers.items()
        tensors = [numpy_helper.from_array(array, name) for name, array in arrays]
        model = helper.make_model(
            helper.make_graph(self.nodes, "dist_net", self.inputs, self.outputs, tensors),
            producer_name="dist_net",
            producer_version=version,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, dict(metadata))
        checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content

    def _new_name(self, name: str) -> str:
        new = name
        while new in self._taken:
            self.counts[name] = self.counts.get(name, 0) + 1
            new = f"{name}_{self.counts[name]}"
        self._taken.add(new)
        return new


def integers(*numbers: int) -> Array:
    """Return the vector in which operators take shapes, axes and indices."""
    return np.array(numbers, np.int64)


def element_type(dtype: DTypeLike) -> int:
    """Return ONNX's number of a dtype; raise ``ExportError`` if ONNX does not support it."""
    try:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    except (KeyError, ValueError) as error:
        raise ExportError(f"ONNX does not support the dtype {np.dtype(dtype)}") from error


class KnownArray(NamedTuple):
    name: str
    array: Array


@dataclass
class Translation:
    """The part of a network that has been added to the graph.

    ``inputs`` is a tensor with an axis 0 of the number of inputs. Each node has a counterpart in
    the network for a second number of inputs, in ``others`` by the node's id. A length that differs
    between them depends on that number and is computed when the graph runs.
    """

    graph: Graph
    inputs: str
    counts: tuple[int, int]
    others: Mapping[int, Expression]
    _tensors: dict[int, str] = field(default_factory=dict)
    _known: dict[int, KnownArray] = field(default_factory=dict)
    _constants: dict[tuple[int, Axes], str] = field(default_factory=dict)

    def hold(self, node: Expression, tensor: str) -> None:
        """Record that ``tensor`` contains the value of ``node``."""
        self._tensors[id(node)] = tensor

    def know(self, node: Expression, value: KnownArray) -> None:
        self._known[id(node)] = value

    def other(self, node: Expression) -> Expression:
        return self.others[id(node)]

    def array(self, node: Expression) -> Array | None:
        """Return the node's value, or None if it depends on the inputs."""
        known = self._known.get(id(node))
        return None if known is None else known.array

    def named(self, node: Expression) -> str:
        if id(node) in self._known:
            return self.transposed(node, tuple(range(node.ndim)))
        return self._tensors[id(node)]

    def transposed(self, node: Expression, axes: Axes) -> str:
        """Return the name of the node's tensor with its axes in this order."""
        if id(node) not in self._known:
            return self.graph.transposed(self._tensors[id(node)], axes)
        if (id(node), axes) not in self._constants:
            name, array = self._known[id(node)]
            self._constants[id(node), axes] = self.graph.constant(array.transpose(axes), name)
        return self._constants[id(node), axes]

    def lengths(self, node: Expression) -> tuple[int | None, ...]:
        """Return the node's shape, with None for lengths that depend on the number of inputs."""
        pairs = zip(node.shape, self.other(node).shape, strict=True)
        return tuple(length if length == other else None for length, other in pairs)

    def reshaped(self, tensor: str, lengths: Sequence[int | None]) -> str:
        """Reshape a tensor; at most one length may depend on the number of inputs (None)."""
        if lengths.count(None) > 1:
            raise ExportError(
                f"two lengths of a shape {lengths} depend on the number of inputs; expected at "
                f"most one"
            )
        shape = integers(*(-1 if length is None else length for length in lengths))
        return self.graph.add("Reshape", tensor, shape)

    def expanded(self, tensor: str, node: Expression, stays: Axes = ()) -> str:
        """Broadcast a tensor to the node's shape, except for the axes in ``stays``."""
        parts: list[str | Array] = [
            integers(1) if axis in stays else self._length(node, axis, length)
            for axis, length in enumerate(self.lengths(node))
        ]
        if all(isinstance(part, np.ndarray) for part in parts):
            return self.graph.add("Expand", tensor, np.concatenate(parts))
        return self.graph.add("Expand", tensor, self.graph.add("Concat", *parts, axis=0))

    def _length(self, node: Expression, axis: int, known: int | None) -> str | Array:
        if known is not None:
            return integers(known)
        few, many = self.counts
        length, other = node.shape[axis], self.other(node).shape[axis]
        if length * many != other * few or length % few:
            raise ExportError(
                f"{node} has {length} elements along axis {axis} for {few} inputs and {other} for "
                f"{many}; expected a multiple of the number of inputs"
            )
        count = self.graph.add("Shape", self.inputs, start=0, end=1)
        return count if length == few else self.graph.add("Mul", count, integers(length // few))
