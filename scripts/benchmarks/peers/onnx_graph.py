"""A net as an ONNX file, float32 and channels first, for the runtimes that read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.folded import (
    Array,
    Convolution,
    FoldedLayer,
    FoldedNet,
    GlobalAverage,
    Shortcut,
    Softmax,
    read_folded,
)

FILE = "net.onnx"
INPUT = "images"
OUTPUT = "probabilities"
BATCH = "batch"
"""The name of the input's free dimension, which each runtime fixes when it loads the file."""

# Of 2022, and enough for these operators: the older they are, the more releases read the file.
OPSET = 17
IR_VERSION = 8


def write_onnx(directory: Path) -> None:
    """Writes ``FILE`` beside the .cfg and .weights that it is made from."""
    import onnx

    onnx.save(onnx_model(read_folded(directory)), directory / FILE)


def onnx_model(net: FoldedNet) -> Any:
    """The ``onnx.ModelProto``: images (batch, C, H, W) to probabilities (batch, classes)."""
    from onnx import TensorProto, helper

    height, width, channels = net.input_shape
    nodes: list[Any] = []
    initializers: list[Any] = []
    outputs: list[str] = []
    current = INPUT
    for index, layer in enumerate(net.layers):
        for name, array in _arrays(layer):
            initializers.append(_tensor(f"{index}_{name}", array))
        nodes += _nodes(index, layer, current, outputs)
        current = nodes[-1].output[0]
        outputs.append(current)
    nodes.append(helper.make_node("Flatten", [current], [OUTPUT], axis=1))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, (BATCH, channels, height, width))],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (BATCH, None))],
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _arrays(layer: FoldedLayer) -> Iterator[tuple[str, Array]]:
    if isinstance(layer, Convolution):
        yield "kernel", layer.kernel
        yield "bias", layer.bias


def _tensor(name: str, array: Array) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(array, name)


def _nodes(index: int, layer: FoldedLayer, x: str, outputs: list[str]) -> list[Any]:
    from onnx import helper

    name = str(index)
    match layer:
        case Convolution():
            convolved = name if layer.slope == 1 else f"{index}_linear"
            convolution = helper.make_node(
                "Conv",
                [x, f"{index}_kernel", f"{index}_bias"],
                [convolved],
                kernel_shape=layer.kernel.shape[2:],
                strides=[layer.stride] * 2,
                pads=[layer.padding] * 4,
            )
            if layer.slope == 1:
                return [convolution]
            leaky = helper.make_node("LeakyRelu", [convolved], [name], alpha=layer.slope)
            return [convolution, leaky]
        case Shortcut():
            return [helper.make_node("Add", [x, outputs[layer.source]], [name])]
        case GlobalAverage():
            return [helper.make_node("GlobalAveragePool", [x], [name])]
        case Softmax():
            return [helper.make_node("Softmax", [x], [name], axis=1)]
