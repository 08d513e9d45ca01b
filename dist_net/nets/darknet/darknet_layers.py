"""The layers of a .cfg file, as defined by Darknet's ``parser.c`` and the sources of its layers.

All maps are (N, H, W, C); a layer whose output is not a map returns (N, 1, 1, outputs). Missing
options have Darknet's defaults. The formulas of activations follow the program's ``activations.h``;
the program treats an unknown name as relu, this project rejects it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff import Expression, Shape
from dist_net.errors import ShapeError
from dist_net.nets.darknet.configuration import Section
from dist_net.nn import Scope, leaky_relu, linear, relu, sigmoid
from dist_net.nn.layers import Activation


def plse(x: Expression) -> Expression:
    outside = ad.where(x < 0.0, (x + 4.0) * 0.01, (x - 4.0) * 0.01 + 1.0)
    inside = x * 0.125 + 0.5
    return ad.where(x < -4.0, outside, ad.where(x > 4.0, outside, inside))


def lhtan(x: Expression) -> Expression:
    below = x * 0.001
    return ad.where(x < 0.0, below, ad.where(x > 1.0, below + 0.999, x))


def selu(x: Expression) -> Expression:
    scale, alpha = 1.0507, 1.6732
    return ad.where(x >= 0.0, x * scale, ad.expm1(ad.minimum(x, 0.0)) * (scale * alpha))


ACTIVATIONS: dict[str, Activation] = {
    "elu": lambda x: ad.where(x >= 0.0, x, ad.expm1(ad.minimum(x, 0.0))),
    "hardtan": lambda x: ad.clip(x, -1.0, 1.0),
    "leaky": leaky_relu,
    "lhtan": lhtan,
    "linear": linear,
    "loggy": lambda x: ad.tanh(x * 0.5),  # 2 / (1 + exp(-x)) - 1
    "logistic": sigmoid,
    "plse": plse,
    "ramp": lambda x: relu(x) + x * 0.1,
    "relie": lambda x: leaky_relu(x, 0.01),
    "relu": relu,
    "selu": selu,
    "tanh": ad.tanh,
}


EPSILON = 1e-6
"""Darknet's CPU code adds this to the deviation (not to the variance)."""

MOMENTUM = 0.99
"""The share of its moving mean and variance that Darknet keeps in a training step."""


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer with its shape in a .weights file.

    Transposing by ``axes`` yields our shape, in which some neighbouring axes are merged.
    """

    name: str
    shape: Shape
    axes: tuple[int, ...]


class DarknetLayer:
    """A layer of a .cfg file, by its section and its number in the network."""

    def __init__(self, section: Section, index: int) -> None:
        pass

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        """Return the output for ``x``; ``earlier`` are all outputs so far. Raise ``ShapeError``."""
        raise NotImplementedError

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """Return the layer's arrays in a .weights file, in order, given the shapes of its maps."""
        return ()


def activation(section: Section, default: str = "logistic") -> Activation:
    """Return the activation that a section names; raise ModelFileError if it is unknown."""
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.error(
            f"activation={name}: expected one of {', '.join(ACTIVATIONS)}", "activation"
        )
    return ACTIVATIONS[name]


def flattened(x: Expression) -> Expression:
    """Flatten (N, H, W, C) to (N, features), in Darknet's order of channels, rows, columns."""
    n, height, width, channels = x.shape
    if height * width > 1:
        x = ad.transpose(x, (0, 3, 1, 2))
    return ad.reshape(x, (n, height * width * channels))


def _batch_norm(activation: Activation) -> nn.BatchNorm:
    return nn.BatchNorm(MOMENTUM, EPSILON, epsilon_on="deviation", activation=activation)


def _vectors(names: str, length: int) -> tuple[Stored, ...]:
    return tuple(Stored(name, (length,), (0,)) for name in names.split())


class Convolutional(DarknetLayer):
    """``[convolutional]``: a convolution with batch norm or a bias."""

    def __init__(self, section: Section, index: int) -> None:
        self.filters = section.integer("filters", 1, 1)
        self.size = section.integer("size", 1, 1)
        self.stride = section.integer("stride", 1, 1)
        padding = section.integer("padding", 0)
        self.padding = self.size // 2 if section.flag("pad") else padding
        self.groups = section.integer("groups", 1, 1)
        self.batch_normalize = section.flag("batch_normalize")
        self.activation = activation(section)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        kernel = self.filters, self.size, self.stride, self.padding, self.groups
        if self.batch_normalize:
            return _batch_norm(self.activation)(nn.Conv2D(*kernel, use_bias=False)(x, scope), scope)
        return nn.Conv2D(*kernel, activation=self.activation)(x, scope)

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """Return the arrays; a kernel has axes (filters, channels of a group, rows, columns)."""
        vectors = "beta gamma mean variance" if self.batch_normalize else "bias"
        kernel = (self.filters, input[3] // self.groups, self.size, self.size)
        return *_vectors(vectors, self.filters), Stored("kernel", kernel, (2, 3, 1, 0))


class Connected(DarknetLayer):
    """``[connected]``: the kernel is (H · W · C, outputs), in the order rows, columns, channels."""

    def __init__(self, section: Section, index: int) -> None:
        self.output = section.integer("output", 1, 1)
        self.batch_normalize = section.flag("batch_normalize")
        self.activation = activation(section)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        inputs = prod(x.shape[1:])
        kernel = scope.parameter("kernel", (inputs, self.output), nn.he_normal)
        y = ad.reshape(x, (x.shape[0], inputs)) @ kernel
        if self.batch_normalize:
            y = _batch_norm(self.activation)(y, scope)
        else:
            y = self.activation(y + scope.parameter("bias", (self.output,), nn.zeros))
        return ad.reshape(y, (x.shape[0], 1, 1, self.output))

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """Return the arrays; a kernel has axes (outputs, channels, rows, columns)."""
        _, height, width, channels = input
        kernel = Stored("kernel", (self.output, channels, height, width), (2, 3, 1, 0))
        if not self.batch_normalize:
            return *_vectors("bias", self.output), kernel
        statistics = _vectors("gamma mean variance", self.output)
        return *_vectors("beta", self.output), kernel, *statistics


class Maxpool(DarknetLayer):
    """``[maxpool]``: ``padding`` is the sum of opposite sides; the top gets the smaller half."""

    def __init__(self, section: Section, index: int) -> None:
        self.stride = section.integer("stride", 1, 1)
        self.size = section.integer("size", self.stride, 1)
        self.padding = section.integer("padding", self.size - 1)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        sides = self._sides(x.shape[1]), self._sides(x.shape[2])
        return nn.MaxPool(self.size, self.stride, sides)(x, scope)

    def _sides(self, length: int) -> tuple[int, int]:
        """Return the padding at both ends of an axis, as far as windows reach into it."""
        before = self.padding // 2
        windows = (length + self.padding - self.size) // self.stride + 1
        reached = (windows - 1) * self.stride + self.size
        return before, max(reached - before - length, 0)


class Avgpool(DarknetLayer):
    """``[avgpool]``: the mean of each channel."""

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        return ad.mean(x, (1, 2), keepdims=True)


class Dropout(DarknetLayer):
    """``[dropout]``: the layer ``dist_net.nn.layers.Dropout``."""

    def __init__(self, section: Section, index: int) -> None:
        probability = section.number("probability", 0.5, 0)
        if probability >= 1:
            raise section.error(f"probability={probability}: expected less than 1", "probability")
        self.layer = nn.Dropout(probability)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        return self.layer(x, scope)


class Softmax(DarknetLayer):
    """``[softmax]``: a softmax of each of ``groups`` equal parts of the inputs."""

    def __init__(self, section: Section, index: int) -> None:
        self.temperature = section.number("temperature", 1, 0)
        if self.temperature == 0:
            raise section.error("temperature=0: expected a number above 0", "temperature")
        self.groups = section.integer("groups", 1, 1)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        n, outputs = x.shape[0], prod(x.shape[1:])
        if outputs % self.groups:
            raise ShapeError(f"groups={self.groups} of {outputs} inputs: expected a divisor")
        grouped = ad.reshape(self.logits(x), (n, self.groups, outputs // self.groups))
        return ad.reshape(ad.softmax(grouped), (n, 1, 1, outputs))

    def logits(self, x: Expression) -> Expression:
        """Return the input divided by the temperature, (N, features)."""
        flat = flattened(x)
        return flat if self.temperature == 1 else flat * (1 / self.temperature)


class Crop(DarknetLayer):
    """``[crop]``: the centre of an image; ``spreads`` maps 0..1 to -1..1.

    In training, the Darknet program crops and mirrors at random; with us, the dataset must do that.
    """

    def __init__(self, section: Section, index: int) -> None:
        self.height = section.integer("crop_height", 1, 1)
        self.width = section.integer("crop_width", 1, 1)
        self.spreads = not section.flag("noadjust")

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        _, height, width, _ = x.shape
        if self.height > height or self.width > width:
            raise ShapeError(
                f"a crop of {self.height} x {self.width} from a map of {height} x {width}: "
                f"expected at most the map's size"
            )
        top, left = (height - self.height) // 2, (width - self.width) // 2
        x = x[:, top : top + self.height, left : left + self.width]
        return x * 2.0 - 1.0 if self.spreads else x


class Cost(DarknetLayer):
    """``[cost]``: the loss of Darknet's training; its output is its input."""

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        return x


def _absolute(section: Section, option: str, value: int, index: int) -> int:
    """Return the layer number of ``value`` in layer ``index``; -1 is the previous layer."""
    if index == 0:
        raise section.error(f"{option}={value}: the first layer has no previous layer", option)
    found = index + value if value < 0 else value
    if not 0 <= found < index:
        places = f"-{index} to -1, or 0 to {index - 1}, in layer {index}"
        raise section.error(f"{option}={value}: expected {places}", option)
    return found


class Route(DarknetLayer):
    """``[route]``: the concatenated channels of earlier layers."""

    def __init__(self, section: Section, index: int) -> None:
        values = section.integers("layers")
        self.layers = [_absolute(section, "layers", value, index) for value in values]

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        maps = [earlier[layer] for layer in self.layers]
        if len({each.shape[:3] for each in maps}) > 1:
            sizes = ", ".join(f"{each.shape[1]} x {each.shape[2]}" for each in maps)
            raise ShapeError(f"the maps of layers {self.layers} are {sizes}: expected equal sizes")
        return maps[0] if len(maps) == 1 else ad.concatenate(maps, 3)


class Shortcut(DarknetLayer):
    """``[shortcut]``: activation(alpha · x + beta · the output of layer ``origin``).

    If the shapes differ, Darknet adds only the channels that both have. It adds every nth pixel of
    a larger map, and adds a smaller map to every nth pixel. The rest of x is unchanged.
    """

    def __init__(self, section: Section, index: int) -> None:
        if "from" not in section.options:
            raise section.error("lacks the option from; expected the number of the layer to add")
        self.origin = _absolute(section, "from", section.integers("from")[0], index)
        self.alpha, self.beta = section.number("alpha", 1.0), section.number("beta", 1.0)
        self.activation = activation(section, "linear")

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        added = earlier[self.origin]
        if added.shape != x.shape:
            if self.alpha != 1:
                raise ShapeError(
                    f"alpha={self.alpha} for maps of {_size(x)} and {_size(added)}: expected 1 "
                    f"if the shapes differ"
                )
            added = _fitted(added, x)
        x = x if self.alpha == 1 else x * self.alpha
        return self.activation(x + (added if self.beta == 1 else added * self.beta))


def _fitted(added: Expression, x: Expression) -> Expression:
    """Return ``added`` in the shape of ``x``, padded with 0."""
    every, apart = _scale(added.shape[1], x.shape[1])
    if _scale(added.shape[2], x.shape[2]) != (every, apart):
        raise ShapeError(
            f"maps of {_size(x)} and {_size(added)}: expected the same ratio of rows and columns"
        )
    _, rows, columns, channels = map(min, added.shape, x.shape)
    read = np.s_[:, : rows * every : every, : columns * every : every, :channels]
    place = np.s_[:, : rows * apart : apart, : columns * apart : apart, :channels]
    return ad.zeros_around(added[read], x.shape, place)


def _size(x: Expression) -> str:
    return " x ".join(map(str, x.shape[1:]))


def _scale(added: int, length: int) -> tuple[int, int]:
    """Return the step between pixels taken from ``added``, and between pixels added to."""
    return max(added // length, 1), max(length // added, 1)


LAYERS: dict[str, type[DarknetLayer]] = {
    **{"avgpool": Avgpool, "connected": Connected, "convolutional": Convolutional, "cost": Cost},
    **{"crop": Crop, "dropout": Dropout, "maxpool": Maxpool, "route": Route},
    **{"shortcut": Shortcut, "softmax": Softmax},
}
"""The layer of each kind of section."""
