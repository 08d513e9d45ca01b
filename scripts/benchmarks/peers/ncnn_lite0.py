"""ncnn on EfficientNet-Lite0: float32, one image at a time as it has no batch.

Its files are written layer by layer, with batch norm folded into the filters; see ``ncnn_files``
for their format.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.peers import lite0_task
from benchmarks.peers.ncnn_files import FLOAT32, INPUT, MAGIC, OUTPUT, PARAMETERS, WEIGHTS
from benchmarks.peers.ncnn_inference import net_in
from benchmarks.peers.orders import Peer
from dist_net.nets import efficientnet_lite0 as lite0

EPSILON = 1e-3
SAME = -233  # TensorFlow's padding, as ncnn writes it
CLIP_AT_6 = "9=3 -23310=2,0,6"

Arrays = dict[str, NDArray[np.float32]]


class NcnnLayers:
    """The layers of the net as lines of a text, and their weights one after the other."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        height, width, channels = lite0.INPUT_SHAPE
        self.lines = [f"Input input 0 1 {INPUT} 0={width} 1={height} 2={channels}"]
        self.weights: list[NDArray[np.float32]] = []
        self.blobs = 1

    def add(self, kind: str, inputs: list[str], parameters: str, output: str = "") -> str:
        """Adds a layer; gives the name of its output."""
        output = output or f"b{self.blobs}"
        names = " ".join([*inputs, output])
        self.lines.append(f"{kind} l{self.blobs} {len(inputs)} 1 {names} {parameters}")
        self.blobs += 1
        return output

    def split(self, x: str) -> tuple[str, str]:
        """What two layers read, under two names."""
        names = f"{x}_0", f"{x}_1"
        self.lines.append(f"Split s{self.blobs} 1 2 {x} {' '.join(names)}")
        self.blobs += 2
        return names

    def convolution(self, x: str, name: str, stride: int = 1, is_linear: bool = False) -> str:
        """A convolution with its batch norm; one with a filter a channel is told by its shape."""
        kernel, bias = self._folded(name)
        filters, depth, size, _ = kernel.shape
        is_depthwise = depth == 1
        self.weights += [FLOAT32.view(np.float32), kernel, bias]
        shape = f"0={filters} 1={size} 3={stride} 4={SAME} 5=1 6={kernel.size}"
        groups = f" 7={filters}" if is_depthwise else ""
        activation = "" if is_linear else f" {CLIP_AT_6}"
        kind = "ConvolutionDepthWise" if is_depthwise else "Convolution"
        return self.add(kind, [x], f"{shape}{groups}{activation}")

    def block(self, x: str, name: str, block: lite0.InvertedResidual, is_residual: bool) -> str:
        """An inverted residual."""
        x, kept = self.split(x) if is_residual else (x, "")
        y = self.convolution(x, f"{name}/expand") if block.expansion > 1 else x
        y = self.convolution(y, f"{name}/depthwise", block.stride)
        y = self.convolution(y, f"{name}/project", is_linear=True)
        return self.add("BinaryOp", [y, kept], "0=0") if is_residual else y

    def dense(self, x: str) -> None:
        """The mean of each channel, and the logits."""
        x = self.add("Pooling", [x], "0=1 4=1")
        kernel, bias = self._arrays["dense/kernel"], self._arrays["dense/bias"]
        self.weights += [FLOAT32.view(np.float32), np.ascontiguousarray(kernel.T), bias]
        self.add("InnerProduct", [x], f"0={bias.size} 1=1 2={kernel.size}", OUTPUT)

    def _folded(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The kernel, (O, I, kh, kw), and the bias of a convolution with its batch norm."""
        (kernel,) = (
            array
            for key, array in self._arrays.items()
            if key.startswith(f"{name}/") and key.endswith("/kernel")
        )
        gamma, beta, mean, variance = (
            array.astype(np.float64)
            for kind in ("gamma", "beta", "mean", "variance")
            for key, array in self._arrays.items()
            if key.startswith(f"{name}/") and key.endswith(f"/{kind}")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        filters = kernel.transpose(3, 2, 0, 1) * scale[:, None, None, None]
        bias = beta - mean * scale
        return np.ascontiguousarray(filters, np.float32), bias.astype(np.float32)


def write_lite0(directory: Path) -> None:
    """Writes the two files."""
    layers = NcnnLayers(lite0.model().layout.views(lite0.read_weights()))
    x = layers.convolution(INPUT, "stem", 2)
    channels = 32
    for index, block in enumerate(lite0.blocks()):
        is_residual = block.stride == 1 and block.filters == channels
        x = layers.block(x, f"block_{index}", block, is_residual)
        channels = block.filters
    layers.dense(layers.convolution(x, "head"))
    content = [str(MAGIC), f"{len(layers.lines)} {layers.blobs}", *layers.lines]
    (directory / PARAMETERS).write_text("\n".join(content) + "\n")
    (directory / WEIGHTS).write_bytes(b"".join(each.tobytes() for each in layers.weights))


def load(directory: Path, batch: int, threads: int) -> Callable[[], lite0_task.Logits]:
    """The net, whose run gives the logits (1, classes); raises BenchmarkError for a batch."""
    import ncnn

    if batch != 1:
        raise BenchmarkError(f"batch={batch}: ncnn has no batches; expected 1")
    net = net_in(directory, threads)
    (pixels,) = lite0_task.images(1)
    height, width, channels = lite0.INPUT_SHAPE
    means, scales = [127.0] * channels, [1 / 128] * channels

    def run() -> lite0_task.Logits:
        image = ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        image.substract_mean_normalize(means, scales)
        extractor = net.create_extractor()
        extractor.input(INPUT, image)
        _, logits = extractor.extract(OUTPUT)
        return np.array(logits)[None]

    return run


if __name__ == "__main__":
    Peer("ncnn", load, write_lite0).obey()
