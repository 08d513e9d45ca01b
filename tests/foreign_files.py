"""ONNX files for tests: small graphs, as other programs write them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def tensor(name: str, shape: Sequence[int | str], kind: int = FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    opset: int = 18,
    **constants: Any,
) -> ModelProto:
    """A model; the domain "mine" is imported too."""
    arrays = [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    inside = helper.make_graph(nodes, "test", inputs, outputs, arrays)
    return helper.make_model(inside, opset_imports=opsets, ir_version=8)


def written(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def sum_and_product(opset: int = 18) -> ModelProto:
    """Two inputs of other types, three numbers and one, and two outputs: rows of both."""
    nodes = [
        helper.make_node("Cast", ["count"], ["factor"], to=FLOAT),
        helper.make_node("Mul", ["numbers", "factor"], ["product"]),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
    ]
    return graph(
        nodes,
        [tensor("numbers", ["N", 3]), tensor("count", ["N", 1], TensorProto.INT64)],
        [tensor("product", ["N", 3]), tensor("positive", ["N"], TensorProto.BOOL)],
        axes=np.array([1]),
        zero=np.float32(0),
        opset=opset,
    )


def centred() -> ModelProto:
    """A batch minus its mean, so that rows depend on each other."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    both = [tensor("x", ["N", 2])], [tensor("y", ["N", 2])]
    return graph(nodes, *both, axes=np.array([0]))


def quotient() -> ModelProto:
    """One int32 divided by another. -2**31 / -1 is a signal that ends the process, on x86-64."""
    kind = TensorProto.INT32
    inputs = [tensor("dividend", [1], kind), tensor("divisor", [1], kind)]
    nodes = [helper.make_node("Div", ["dividend", "divisor"], ["quotient"])]
    return graph(nodes, inputs, [tensor("quotient", [1], kind)])


def square_ones() -> ModelProto:
    """The sum of a square of ones; the input is its side."""
    nodes = [
        helper.make_node("Concat", ["side", "side"], ["shape"], axis=0),
        helper.make_node("Expand", ["one", "shape"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["y"], keepdims=0),
    ]
    inputs = [tensor("side", [1], TensorProto.INT64)]
    return graph(nodes, inputs, [tensor("y", [])], one=np.float32(1))


def classifier(shape: Sequence[int | str], classes: int = 3) -> ModelProto:
    """The mean of each channel of NCHW images, and logits: ``classes`` times its difference."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("MatMul", ["features", "kernel"], ["scores"]),
    ]
    kernel = np.eye(3, classes, dtype=np.float32) * 4
    return graph(nodes, [tensor("x", shape)], [tensor("scores", ["N", classes])], kernel=kernel)
