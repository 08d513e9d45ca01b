"""PyTorch's training step of the nets of ``scripts/bench nets``: eager, or compiled if asked to.

Maps lie channels last, which takes PyTorch less time. The weights are PyTorch's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.nets import CODES, LEARNING_RATE, NETS, WORDS
from benchmarks.peers.orders import Peer


def network_of(name: str) -> Any:
    """The net as a module: of maps (N, C, H, W), and logits (N, classes, ...)."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Recurrent(nn.Module):  # type: ignore[misc]
        def __init__(self, kind: Callable[..., Any]) -> None:
            super().__init__()
            self.recurrent, self.dense = kind(32, 64, batch_first=True), nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            return self.dense(self.recurrent(x)[0][:, -1])

    class Table(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8 * CODES, 16)
            self.register_buffer("first", torch.arange(8) * CODES)
            self.dense = mlp(128, 256, 128, 1)

        def forward(self, x: Any) -> Any:
            return self.dense(self.embedding(x + self.first).flatten(1))

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other_norm = nn.LayerNorm(128), nn.LayerNorm(128)
            self.project, self.out = nn.Linear(128, 384), nn.Linear(128, 128)
            self.dense = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))

        def forward(self, x: Any) -> Any:
            count, places, _ = x.shape
            of_head = self.project(self.norm(x)).view(count, places, 3, 4, 32)
            queries, keys, values = of_head.permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(queries, keys, values)
            x = x + self.out(attended.transpose(1, 2).reshape(count, places, 128))
            return x + self.dense(self.other_norm(x))

    class Places(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.transpose(1, 2)

    def mlp(*units: int) -> Any:
        layers: list[Any] = []
        for inputs, outputs in pairwise(units):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def twice(channels: int, filters: int) -> Any:
        first, second = (nn.Conv2d(each, filters, 3, 1, 1) for each in (channels, filters))
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    class Skip(nn.Module):  # type: ignore[misc]
        def __init__(self, *layers: Any) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return torch.cat([x, self.layers(x)], 1)

    def unet() -> Any:
        up = nn.ConvTranspose2d
        middle = Skip(nn.MaxPool2d(2), twice(32, 64), up(64, 32, 2, 2))
        inner = nn.MaxPool2d(2), twice(16, 32), middle, twice(64, 32), up(32, 16, 2, 2)
        return nn.Sequential(twice(3, 16), Skip(*inner), twice(32, 16), nn.Conv2d(16, 10, 1))

    def normalized(channels: int, filters: int, stride: int = 1) -> list[Any]:
        convolution = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        return [convolution, nn.BatchNorm2d(filters)]

    class Shortcut(nn.Module):  # type: ignore[misc]
        def __init__(self, channels: int, filters: int, stride: int) -> None:
            super().__init__()
            first, second = normalized(channels, filters, stride), normalized(filters, filters)
            self.change = nn.Sequential(*first, nn.ReLU(), *second)
            self.same: Any = nn.Identity()
            if stride > 1:
                narrow = nn.Conv2d(channels, filters, 1, stride, bias=False)
                self.same = nn.Sequential(narrow, nn.BatchNorm2d(filters))

        def forward(self, x: Any) -> Any:
            return functional.relu(self.same(x) + self.change(x))

    def resnet() -> Any:
        blocks = Shortcut(16, 16, 1), Shortcut(16, 32, 2), Shortcut(32, 64, 2)
        end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        return nn.Sequential(*normalized(3, 16), nn.ReLU(), *blocks, *end)

    def lenet() -> Any:
        layers: list[Any] = []
        for channels, filters in ((1, 32), (32, 64)):
            convolution = nn.Conv2d(channels, filters, 3, 1, 1)
            layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), mlp(3136, 128, 10))

    def transformer() -> Any:
        blocks = [Block() for _ in range(4)]
        end = nn.LayerNorm(128), nn.Linear(128, WORDS), Places()
        return nn.Sequential(nn.Embedding(WORDS, 128), *blocks, *end)

    networks: dict[str, Callable[[], Any]] = {
        "mlp": lambda: mlp(784, 128, 10),
        "wide mlp": lambda: mlp(784, 512, 512, 10),
        "table": Table,
        "gru": lambda: Recurrent(nn.GRU),
        "lenet": lenet,
        "transformer": transformer,
        "u-net": unet,
        "resnet": resnet,
        "lstm": lambda: Recurrent(nn.LSTM),
    }
    return networks[name]()


def load(_directory: Path, _batch: int, threads: int) -> Callable[[], NDArray[np.float32]]:
    """A function that takes a step of the net named on the command line; it returns the loss."""
    import torch

    name, *compiled = sys.argv[2:]
    net = NETS[name]
    inputs, targets = map(torch.from_numpy, net.arrays())
    network = network_of(name)
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2)
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    loss_of = torch.nn.CrossEntropyLoss() if net.classes else torch.nn.MSELoss()
    forward = torch.compile(network) if compiled else network

    def step() -> NDArray[np.float32]:
        torch.set_num_threads(threads)  # for the process, in which another case may have others
        optimizer.zero_grad()
        loss = loss_of(forward(inputs), targets)
        loss.backward()
        optimizer.step()
        value: NDArray[np.float32] = loss.detach().numpy()
        return value

    return step


if __name__ == "__main__":
    Peer("torch", load).obey()
