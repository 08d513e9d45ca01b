"""A graph of ONNX's operators, as data: https://onnx.ai/onnx/operators, opset 18.

``dist_net.export.onnx`` writes it to a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from dist_net.autodiff import Array
from dist_net.errors import NotExportableError

Attribute: TypeAlias = "int | float | str | tuple[int, ...]"
SMALL = 16  # elements

ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}
"""ONNX's number of each dtype (``TensorProto.DataType`` of its specification)."""


@dataclass(frozen=True)
class OnnxNode:
    """An operator applied to tensors; an input that is left out is called ""."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Port:
    """An input or output of the whole graph; a length that may change is a name."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]


class Graph:
    """Nodes in the order in which they are computed, and the arrays that they read.

    ``reserved`` are names for its inputs and outputs, which nothing else is called.
    """

    def __init__(self, *reserved: str) -> None:
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self.nodes: list[OnnxNode] = []
        self.initializers: dict[str, Array] = {}
        self._taken = set(reserved)
        self._counts: dict[str, int] = {}
        self._known: dict[object, str] = {}

    def input(self, name: str, dtype: DTypeLike, shape: tuple[int | str, ...]) -> str:
        """Declares an input of the graph, and returns its name."""
        self.inputs.append(Port(name, np.dtype(dtype), shape))
        return name

    def add(self, operator: str, *inputs: str | Array, **attributes: Attribute) -> str:
        """Adds a node, whose arrays become constants, and returns the name of its output.

        A node that is there already is not added again.
        """
        names = tuple(each if isinstance(each, str) else self.constant(each) for each in inputs)
        identity = operator, names, tuple(attributes.items())
        if identity not in self._known:
            output = self._new_name(operator.lower())
            self.nodes.append(OnnxNode(operator, names, output, attributes))
            self._known[identity] = output
        return self._known[identity]

    def cast(self, tensor: str, dtype: DTypeLike) -> str:
        """Adds the conversion of a tensor; raises NotExportableError for a dtype ONNX has not."""
        return self.add("Cast", tensor, to=element_type(np.dtype(dtype)))

    def constant(self, array: Array, name: str = "constant") -> str:
        """The name of an array: ``name``, or that and a number. A small one is kept once."""
        identity = array.dtype, array.shape, array.tobytes() if array.size <= SMALL else id(array)
        if identity not in self._known:
            self._known[identity] = self._new_name(name)
            self.initializers[self._known[identity]] = array
        return self._known[identity]

    def output(self, tensor: str, port: Port) -> None:
        """Declares an output: ``tensor``, by the name of the port."""
        if tensor not in {node.output for node in self.nodes}:
            tensor = self.add("Identity", tensor)
        names = {tensor: port.name}
        self.nodes = [
            replace(
                node,
                inputs=tuple(names.get(each, each) for each in node.inputs),
                output=names.get(node.output, node.output),
            )
            for node in self.nodes
        ]
        self.outputs.append(port)

    def prune(self) -> None:
        """Removes the nodes and arrays that no output needs."""
        needed = {port.name for port in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if node.output in needed:
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]
        self.initializers = {
            name: array for name, array in self.initializers.items() if name in needed
        }

    def _new_name(self, name: str) -> str:
        new = name
        while new in self._taken:
            self._counts[name] = self._counts.get(name, 0) + 1
            new = f"{name}_{self._counts[name]}"
        self._taken.add(new)
        return new


def integers(*numbers: int) -> Array:
    """A vector as operators take shapes, axes and indices."""
    return np.array(numbers, np.int64)


def element_type(dtype: np.dtype[np.generic]) -> int:
    """ONNX's number of a dtype; raises NotExportableError if it has none."""
    if dtype.name not in ELEMENT_TYPES:
        raise NotExportableError(
            f"dtype {dtype}, which ONNX has not; expected one of {', '.join(ELEMENT_TYPES)}"
        )
    return ELEMENT_TYPES[dtype.name]
