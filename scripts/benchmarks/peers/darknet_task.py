"""The net and the images that every runtime is measured on.

The net lies in a directory as Darknet's pair of files; what a runtime needs besides, its peer
writes there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.seeded_weights import seeded_weights
from dist_net.nets.darknet.configuration import Configuration, write_configuration
from dist_net.nets.darknet.darknet_layers import Convolutional
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import write_weights

Array = NDArray[np.float32]

CONFIGURATION = "net.cfg"
WEIGHTS = "net.weights"
SEED = 0


def write_net(configuration: Configuration, directory: Path) -> float:
    """Writes the net with seeded weights; gives the floating-point operations for one image."""
    network = DarknetNetwork(configuration)
    write_configuration(configuration, directory / CONFIGURATION)
    write_weights(directory / WEIGHTS, network, seeded_weights(network, SEED))
    return flops(network)


def flops(network: DarknetNetwork) -> float:
    """Of the convolutions, by the direct algorithm, for one image: 18.57e9 for Darknet-53.

    A multiplication and its addition are 2.
    """
    count = 0
    for placed in network.layers:
        if isinstance(placed.layer, Convolutional):
            _, height, width, filters = placed.output_shape
            channels = placed.input_shape[3] // placed.layer.groups
            count += 2 * height * width * filters * channels * placed.layer.size**2
    return float(count)


def images(batch: int, input_shape: tuple[int, ...]) -> Array:
    """Random images (batch, H, W, C) float32 in 0..1; the first ones are the same at each call.

    Noise is as good as photographs: no runtime's time depends on what it sees.
    """
    return np.random.default_rng(SEED).random((batch, *input_shape), np.float32)


def channels_first(batch: int, input_shape: tuple[int, ...]) -> Array:
    """The same images as (batch, C, H, W)."""
    return np.ascontiguousarray(images(batch, input_shape).transpose(0, 3, 1, 2))
