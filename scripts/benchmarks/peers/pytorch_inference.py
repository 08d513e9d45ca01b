"""PyTorch as most people run a net on a CPU: eager, in inference mode, batch norm folded.

Maps lie channels last, which PyTorch has as an option, and which is faster: 111 ms an image
instead of 136 in a batch of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import darknet_task
from benchmarks.peers.folded import (
    Convolution,
    FoldedLayer,
    GlobalAverage,
    Shortcut,
    Softmax,
    read_folded,
)
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
    """The net, whose run gives the probabilities (batch, classes)."""
    import torch

    net = read_folded(directory)
    layers = [(each, torch_layer(each)) for each in net.layers]
    kept = net.used_again
    pixels = torch.from_numpy(darknet_task.images(batch, net.input_shape)).permute(0, 3, 1, 2)

    def run() -> darknet_task.Array:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            outputs: dict[int, Any] = {}
            x = pixels
            for index, (described, layer) in enumerate(layers):
                added = [outputs[described.source]] if isinstance(described, Shortcut) else []
                x = layer(x, *added)
                if index in kept:
                    outputs[index] = x
            probabilities: darknet_task.Array = x.flatten(1).numpy()
        return probabilities

    return run


def torch_layer(layer: FoldedLayer) -> Callable[..., Any]:
    """The function of the output before; a shortcut's is one of what it adds, too."""
    import torch
    from torch.nn import functional

    match layer:
        case Convolution():
            kernel, bias = torch.from_numpy(layer.kernel), torch.from_numpy(layer.bias)
            kernel = kernel.contiguous(memory_format=torch.channels_last)

            def convolve(x: Any) -> Any:
                y = functional.conv2d(x, kernel, bias, layer.stride, layer.padding)
                return y if layer.slope == 1 else functional.leaky_relu_(y, layer.slope)

            return convolve
        case Shortcut():
            add: Callable[..., Any] = torch.add
            return add
        case GlobalAverage():
            return lambda x: functional.adaptive_avg_pool2d(x, 1)
        case Softmax():
            return lambda x: torch.softmax(x, 1)


if __name__ == "__main__":
    Peer("torch", load).obey()
