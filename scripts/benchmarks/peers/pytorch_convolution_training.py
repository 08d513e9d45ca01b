"""PyTorch's training step of the net of ``fashion-mnist-conv``: eager, with its own Adam.

Maps lie channels last, which takes PyTorch 40 ms a step on one thread instead of 56.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.peers import task
from benchmarks.peers.convolution_training_step import RECIPE, SEED
from benchmarks.peers.orders import Peer
from dist_net.data import epoch_order
from dist_net.nets.darknet.darknet_layers import (
    EPSILON,
    MOMENTUM,
    Avgpool,
    Convolutional,
    Maxpool,
    Softmax,
)
from dist_net.nets.darknet.darknet_network import DarknetNetwork, PlacedLayer
from dist_net.nets.recipes.recipe import Recipe, load_recipe
from dist_net.nn import Sequential, leaky_relu, linear
from dist_net.optim import Adam

Arrays = Mapping[str, NDArray[np.float32]]


def load(_directory: Path, batch: int, threads: int) -> Callable[[], NDArray[np.float32]]:
    """A function that takes a step on the next minibatch of random images; it gives the loss.

    As in ``pytorch_eager``, the pixels wait as float32.
    """
    import torch

    torch.set_num_threads(threads)
    recipe = load_recipe(RECIPE).recipe
    network = torch_network(recipe).to(memory_format=torch.channels_last)
    optimizer = torch_adam(recipe, network)
    cross_entropy = torch.nn.CrossEntropyLoss()
    images, labels = task.synthetic_images()
    pixels = (
        torch.from_numpy(images.reshape(-1, 1, *recipe.input_shape, copy=False)).float().div_(255)
    )
    targets = torch.from_numpy(labels).long()
    batches = torch.from_numpy(epoch_order(SEED, 0, task.SAMPLES)).split(batch)
    position = 0

    def step() -> NDArray[np.float32]:
        nonlocal position
        chosen = batches[position]
        # The last batch may be a short one: never used.
        position = (position + 1) % (task.SAMPLES // batch)
        optimizer.zero_grad()
        loss = cross_entropy(network(pixels[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
        value: NDArray[np.float32] = loss.detach().numpy()
        return value

    return step


def torch_adam(recipe: Recipe, network: Any) -> Any:
    """The recipe's optimizer; raises BenchmarkError if it is not Adam."""
    import torch

    adam = recipe.optimizer
    if not isinstance(adam, Adam):
        raise BenchmarkError(f"{RECIPE}: optimizer {adam}; expected Adam, as PyTorch's is measured")
    return torch.optim.Adam(
        network.parameters(), recipe.learning_rate, (adam.beta1, adam.beta2), adam.epsilon
    )


def torch_network(recipe: Recipe) -> Any:
    """The recipe's Darknet-style net, with its first weights, as a module that gives logits."""
    from torch import nn

    assert isinstance(recipe.network, Sequential)
    (network,) = (each for each in recipe.network.layers if isinstance(each, DarknetNetwork))
    (prefix,) = {name.partition("/")[0] for name, _ in recipe.model.layout.shapes}
    views = recipe.model.layout.views(recipe.initial_weights(SEED))
    modules: list[Any] = []
    for placed in network.layers:
        start = f"{prefix}/{placed.name}/"
        own = {name.removeprefix(start): view for name, view in views.items() if start in name}
        modules += _modules(placed, own)
    return nn.Sequential(*modules, nn.Flatten())


def _modules(placed: PlacedLayer, arrays: Arrays) -> Iterator[Any]:
    from torch import nn

    layer = placed.layer
    match layer:
        case Convolutional(groups=1):
            yield from _convolution(layer, placed.input_shape[3], arrays)
        case Maxpool() if layer.padding // 2 == 0:
            # What Darknet pads below and to the right, windows may hang over here.
            yield nn.MaxPool2d(layer.size, layer.stride, ceil_mode=layer.padding > 0)
        case Avgpool():
            yield nn.AdaptiveAvgPool2d(1)
        case Softmax():
            pass  # in the loss
        case _:
            raise BenchmarkError(
                f"{RECIPE}: layer {placed.name}; expected one that PyTorch is given"
            )


def _convolution(layer: Convolutional, channels: int, arrays: Arrays) -> Iterator[Any]:
    import torch
    from torch import nn

    convolution = nn.Conv2d(
        channels,
        layer.filters,
        layer.size,
        layer.stride,
        layer.padding,
        bias=not layer.batch_normalize,
    )
    with torch.no_grad():
        kernel = np.ascontiguousarray(arrays["kernel"].transpose(3, 2, 0, 1))
        convolution.weight.copy_(torch.from_numpy(kernel))
        if not layer.batch_normalize:
            convolution.bias.copy_(torch.from_numpy(arrays["bias"]))
    yield convolution
    if layer.batch_normalize:
        # Gamma and beta begin as 1 and 0 in both.
        yield nn.BatchNorm2d(layer.filters, EPSILON**2, 1 - MOMENTUM)
    if layer.activation is leaky_relu:
        yield nn.LeakyReLU(0.1, inplace=True)
    elif layer.activation is not linear:
        raise BenchmarkError(f"{RECIPE}: {layer.activation}; expected leaky or linear")


if __name__ == "__main__":
    Peer("torch", load).obey()
