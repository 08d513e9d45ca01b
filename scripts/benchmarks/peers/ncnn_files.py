"""A net as ncnn's pair of files: layers in a text, weights end to end in float32.

The formats are those of ncnn's wiki ("param and model file structure"; "operators" for the
numbers of the parameters). An output that two layers read goes through a Split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peers.folded import (
    Array,
    Convolution,
    FoldedLayer,
    GlobalAverage,
    Shortcut,
    read_folded,
)

PARAMETERS = "net.param"
WEIGHTS = "net.bin"
INPUT = "images"
OUTPUT = "probabilities"

MAGIC = 7767517
FLOAT32 = np.zeros(1, np.uint32)
"""What stands before the weights of a layer, though not before its bias: their type."""

LEAKY = 2  # the number of this activation in a fused layer


def write_ncnn(directory: Path) -> None:
    """Writes the two files beside the .cfg and .weights that they are made from."""
    net = read_folded(directory)
    height, width, channels = net.input_shape
    lines = [f"Input input 0 1 {INPUT} 0={width} 1={height} 2={channels}"]
    blobs: dict[int, str] = {}
    current, blob_count, is_map = INPUT, 1, True
    with (directory / WEIGHTS).open("wb") as weights:
        for index, layer in enumerate(net.layers):
            inputs = [current]
            if isinstance(layer, Shortcut):
                inputs.append(blobs[layer.source])
            is_map = is_map and not isinstance(layer, GlobalAverage)
            kind, parameters, arrays = described(layer, is_map)
            current = OUTPUT if index == len(net.layers) - 1 else f"b{index}"
            lines.append(
                f"{kind} l{index} {len(inputs)} 1 {' '.join(inputs)} {current} {parameters}"
            )
            blob_count += 1
            if index in net.used_again:
                blobs[index] = f"{current}_again"
                lines.append(f"Split s{index} 1 2 {current} {current}_next {current}_again")
                current = f"{current}_next"
                blob_count += 2
            for array in arrays:
                weights.write(array.tobytes())
    content = [str(MAGIC), f"{len(lines)} {blob_count}", *lines]
    (directory / PARAMETERS).write_text("\n".join(content) + "\n")


def described(layer: FoldedLayer, is_map: bool) -> tuple[str, str, list[Array]]:
    """ncnn's name of the layer, its parameters, and what the file of the weights has of it.

    After a global average, what was a map is a row of numbers, ``is_map`` is false, and a
    convolution is a matrix.
    """
    match layer:
        case Convolution() if is_map:
            size = layer.kernel.shape[2]
            shape = f"1={size} 3={layer.stride} 4={layer.padding} 5=1 6={layer.kernel.size}"
            parameters = f"0={len(layer.bias)} {shape}{_activation(layer.slope)}"
            return "Convolution", parameters, [FLOAT32.view(np.float32), layer.kernel, layer.bias]
        case Convolution():
            parameters = f"0={len(layer.bias)} 1=1 2={layer.kernel.size}{_activation(layer.slope)}"
            return "InnerProduct", parameters, [FLOAT32.view(np.float32), layer.kernel, layer.bias]
        case Shortcut():
            return "BinaryOp", "0=0", []
        case GlobalAverage():
            return "Pooling", "0=1 4=1", []
    return "Softmax", "0=0", []


def _activation(slope: float) -> str:
    return "" if slope == 1 else f" 9={LEAKY} -23310=1,{slope:e}"
