"""Writes a graph as an ONNX file; needs the extra ``onnx``."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import checker, helper, numpy_helper

from dist_net.export.graph import Graph, Port, element_type

OPSET = 18
IR_VERSION = 8
"""The first that has this opset, so that older programs read the file too."""


def model_bytes(graph: Graph, version: str, metadata: Mapping[str, str]) -> bytes:
    """The content of the file: the graph, and properties that programs can read."""
    built = helper.make_graph(
        [
            helper.make_node(
                node.operator, node.inputs, [node.output], name=node.output, **node.attributes
            )
            for node in graph.nodes
        ],
        "dist_net",
        list(map(_described, graph.inputs)),
        list(map(_described, graph.outputs)),
        [numpy_helper.from_array(array, name) for name, array in graph.initializers.items()],
    )
    model = helper.make_model(
        built,
        producer_name="dist_net",
        producer_version=version,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, dict(metadata))
    checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _described(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, element_type(port.dtype), list(port.shape))
