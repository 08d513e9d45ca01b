"""An ONNX graph under construction, and the file that holds it. Needs the extra ``onnx``.

Operators: https://onnx.ai/onnx/operators, opset 18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike
from onnx import NodeProto, ValueInfoProto, checker, helper, numpy_helper

from dist_net.autodiff import Array
from dist_net.errors import ExportError

Attribute: TypeAlias = "int | float | str | tuple[int, ...]"

OPSET = 18
IR_VERSION = 8
"""The first version with this opset, so that older programs can read the file."""
MAX_SHARED = 16  # elements; larger constants are not compared with each other


class Graph:
    """Nodes in the order of computation, and the constant arrays that they read.

    ``reserved`` names belong to inputs and outputs; no other tensor gets them.
    """

    def __init__(self, *reserved: str) -> None:
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self._taken = set(reserved)
        self._counts: dict[str, int] = {}
        self._known: dict[object, str] = {}

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph and return its name; a variable length is a name."""
        self.inputs.append(helper.make_tensor_value_info(name, element_type(dtype), shape))
        return name

    def add(self, operator: str, *inputs: str | Array, **attributes: Attribute) -> str:
        """Add a node and return the name of its output; arrays become constants.

        Returns the existing node's output if the graph has an equal node.
        """
        names = tuple(each if isinstance(each, str) else self.constant(each) for each in inputs)
        identity = operator, names, tuple(attributes.items())
        if identity not in self._known:
            output = self._new_name(operator.lower())
            self.nodes.append(helper.make_node(operator, names, [output], output, **attributes))
            self._known[identity] = output
        return self._known[identity]

    def cast(self, tensor: str, dtype: DTypeLike) -> str:
        """Add the conversion of a tensor; raise ``ExportError`` for an unsupported dtype."""
        return self.add("Cast", tensor, to=element_type(dtype))

    def constant(self, array: Array, name: str = "constant") -> str:
        """Return the name of an array: ``name``, with a number if it is taken.

        Equal small arrays are stored once.
        """
        is_small = array.size <= MAX_SHARED
        identity = array.dtype, array.shape, array.tobytes() if is_small else id(array)
        if identity not in self._known:
            self._known[identity] = self._new_name(name)
            self.initializers[self._known[identity]] = array
        return self._known[identity]

    def output(self, tensor: str, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> None:
        """Declare ``tensor`` an output of the graph and rename it to ``name``."""
        if all(tensor not in node.output for node in self.nodes):
            tensor = self.add("Identity", tensor)
        for node in self.nodes:
            if tensor in node.output:
                node.output[0] = node.name = name
            node.input[:] = [name if each == tensor else each for each in node.input]
        self.outputs.append(helper.make_tensor_value_info(name, element_type(dtype), shape))

    def prune(self) -> None:
        """Remove the nodes and arrays that no output needs."""
        needed = {output.name for output in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.initializers = {
            name: array for name, array in self.initializers.items() if name in needed
        }

    def model_bytes(self, version: str, metadata: Mapping[str, str]) -> bytes:
        """Return the content of an ONNX file with this graph and these properties."""
        tensors = [
            numpy_helper.from_array(array, name) for name, array in self.initializers.items()
        ]
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
            self._counts[name] = self._counts.get(name, 0) + 1
            new = f"{name}_{self._counts[name]}"
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
