"""A Darknet classifier as the peers are given it: batch norm folded, kernels as (O, I, kh, kw).

Every runtime folds batch norm into the convolution before it, some of them only when asked the
right way. Folding it here, in float64, gives each its best and all the same numbers, whichever
epsilon its own batch norm has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.peers.darknet_task import CONFIGURATION, WEIGHTS
from dist_net.ground.vector import Vector
from dist_net.nets.darknet.configuration import read_configuration
from dist_net.nets.darknet.darknet_layers import EPSILON, Avgpool, Convolutional
from dist_net.nets.darknet.darknet_layers import Shortcut as DarknetShortcut
from dist_net.nets.darknet.darknet_layers import Softmax as DarknetSoftmax
from dist_net.nets.darknet.darknet_network import DarknetNetwork, PlacedLayer
from dist_net.nets.darknet.weights import read_weights
from dist_net.nn import leaky_relu, linear
from dist_net.nn.layers import Activation

Array = NDArray[np.float32]

SLOPES: dict[Activation, float] = {linear: 1.0, leaky_relu: 0.1}


@dataclass(frozen=True)
class Convolution:
    """A convolution with a bias and a leaky relu of ``slope``, which is 1 where there is none.

    ``kernel`` is (O, I, kh, kw) and ``bias`` (O,), both float32; the padding is that of each side.
    """

    kernel: Array
    bias: Array
    stride: int
    padding: int
    slope: float


@dataclass(frozen=True)
class Shortcut:
    """The output of the layer before plus that of layer number ``source``."""

    source: int


@dataclass(frozen=True)
class GlobalAverage:
    """The mean of each channel, as a map of one pixel."""


@dataclass(frozen=True)
class Softmax:
    """Over all channels of a map of one pixel."""


FoldedLayer = Convolution | Shortcut | GlobalAverage | Softmax


@dataclass(frozen=True)
class FoldedNet:
    """Layers in order, numbered from 0; ``input_shape`` is (H, W, C)."""

    input_shape: tuple[int, int, int]
    layers: tuple[FoldedLayer, ...]

    @property
    def used_again(self) -> frozenset[int]:
        """The layers whose output more than the next one needs."""
        return frozenset(each.source for each in self.layers if isinstance(each, Shortcut))


def read_folded(directory: Path) -> FoldedNet:
    """The net whose ``CONFIGURATION`` and ``WEIGHTS`` lie in ``directory``.

    Raises BenchmarkError for a layer that the peers are not given.
    """
    network = DarknetNetwork(read_configuration(directory / CONFIGURATION))
    return fold(network, read_weights(directory / WEIGHTS, network))


def fold(network: DarknetNetwork, vector: Vector) -> FoldedNet:
    """The net with the weights of ``vector``, which are copied."""
    views = network.layout.views(vector)
    height, width, channels = network.input_shape
    layers = tuple(_folded(each, views) for each in network.layers)
    return FoldedNet((height, width, channels), layers)


def _folded(placed: PlacedLayer, views: Mapping[str, Vector]) -> FoldedLayer:
    layer = placed.layer
    match layer:
        case Convolutional(groups=1) if layer.activation in SLOPES:
            return _convolution(placed.name, layer, views)
        case DarknetShortcut(alpha=1, beta=1) if layer.activation is linear:
            return Shortcut(layer.origin)
        case Avgpool():
            return GlobalAverage()
        case DarknetSoftmax(groups=1, temperature=1):
            return Softmax()
    raise BenchmarkError(
        f"layer {placed.name} {placed.section.options}: not among the layers that the peers are "
        f"measured on; expected those of Darknet-53"
    )


def _convolution(name: str, layer: Convolutional, views: Mapping[str, Vector]) -> Convolution:
    kernel = views[f"{name}/kernel"].transpose(3, 2, 0, 1).astype(np.float64)
    if layer.batch_normalize:
        deviation = np.sqrt(views[f"{name}/variance"].astype(np.float64)) + EPSILON
        scale = views[f"{name}/gamma"] / deviation
        kernel *= scale[:, None, None, None]
        bias = views[f"{name}/beta"] - views[f"{name}/mean"] * scale
    else:
        bias = views[f"{name}/bias"].astype(np.float64)
    return Convolution(
        np.ascontiguousarray(kernel, np.float32),
        bias.astype(np.float32),
        layer.stride,
        layer.padding,
        SLOPES[layer.activation],
    )
