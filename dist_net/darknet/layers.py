"""The layers of a .cfg file that make their output from the one before them.

Maps are (N, H, W, C) throughout, and a layer that leaves no map gives (N, 1, 1, outputs). What a
layer stands for, and what an option is where it is missing, is the Darknet program's; sources are
its ``parser.c`` and the layers' own files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from dist_net.autodiff import Expression, Shape, mean, part, reshape, softmax, transpose
from dist_net.darknet.activations import ACTIVATIONS
from dist_net.darknet.configuration import Section
from dist_net.errors import ShapeError
from dist_net.nn import BatchNorm, Conv2D, MaxPool, Scope, he_normal, zeros
from dist_net.nn import Dropout as NNDropout
from dist_net.nn.activations import Activation

EPSILON = 1e-6
"""What Darknet's CPU code adds to the deviation, not to the variance."""

MOMENTUM = 0.99
"""How much of the moving mean and variance a training step of Darknet leaves as it is."""


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer as a .weights file has it.

    ``shape`` is the file's; with the axes in the order ``axes`` it is ours, or ours once
    neighbouring axes are made one.
    """

    name: str
    shape: Shape
    axes: tuple[int, ...]


class DarknetLayer(Protocol):
    """A layer of a .cfg file."""

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        """The output for the output ``x`` of the layer before; ``earlier`` has those of all.

        Raises ShapeError if they do not fit.
        """
        ...

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """What a .weights file has of this layer, in its order, given the shapes of its maps."""
        ...


class Weightless:
    """A layer that a .weights file has nothing of."""

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """Nothing."""
        return ()


def activation(section: Section, default: str = "logistic") -> Activation:
    """The activation that a section names; raises ConfigurationError if there is none such."""
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.error(
            f"activation={name}: expected one of {', '.join(ACTIVATIONS)}", "activation"
        )
    return ACTIVATIONS[name]


def flattened(x: Expression) -> Expression:
    """(N, H, W, C) to (N, features), in Darknet's order, which has the channels outermost."""
    n, height, width, channels = x.shape
    if height * width > 1:
        x = transpose(x, (0, 3, 1, 2))
    return reshape(x, (n, height * width * channels))


def _batch_norm(activation: Activation) -> BatchNorm:
    return BatchNorm(MOMENTUM, EPSILON, epsilon_on="deviation", activation=activation)


def _vectors(names: str, length: int) -> tuple[Stored, ...]:
    return tuple(Stored(name, (length,), (0,)) for name in names.split())


@dataclass(frozen=True)
class Convolutional:
    """``[convolutional]``: with batch norm, or with a bias."""

    filters: int
    size: int
    stride: int
    padding: int
    groups: int
    batch_normalize: bool
    activation: Activation

    @classmethod
    def of(cls, section: Section) -> Convolutional:
        """The layer of this section."""
        size = section.integer("size", 1, 1)
        padding = section.integer("padding", 0)
        return cls(
            filters=section.integer("filters", 1, 1),
            size=size,
            stride=section.integer("stride", 1, 1),
            padding=size // 2 if section.flag("pad") else padding,
            groups=section.integer("groups", 1, 1),
            batch_normalize=section.flag("batch_normalize"),
            activation=activation(section),
        )

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        kernel = self.filters, self.size, self.stride, self.padding, self.groups
        if self.batch_normalize:
            return _batch_norm(self.activation)(Conv2D(*kernel, use_bias=False)(x, scope), scope)
        return Conv2D(*kernel, activation=self.activation)(x, scope)

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """Kernels lie as (filters, channels of a group, rows, columns)."""
        vectors = "beta gamma mean variance" if self.batch_normalize else "bias"
        kernel = (self.filters, input[3] // self.groups, self.size, self.size)
        return *_vectors(vectors, self.filters), Stored("kernel", kernel, (2, 3, 1, 0))


@dataclass(frozen=True)
class Connected:
    """``[connected]``: all inputs to each output.

    Its kernel is (H · W · C, outputs), rows before columns before channels as in our maps.
    """

    output: int
    batch_normalize: bool
    activation: Activation

    @classmethod
    def of(cls, section: Section) -> Connected:
        """The layer of this section."""
        output = section.integer("output", 1, 1)
        return cls(output, section.flag("batch_normalize"), activation(section))

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        inputs = prod(x.shape[1:])
        kernel = scope.parameter("kernel", (inputs, self.output), he_normal)
        y = reshape(x, (x.shape[0], inputs)) @ kernel
        if self.batch_normalize:
            y = _batch_norm(self.activation)(y, scope)
        else:
            y = self.activation(y + scope.parameter("bias", (self.output,), zeros))
        return reshape(y, (x.shape[0], 1, 1, self.output))

    def stored(self, input: Shape, output: Shape) -> tuple[Stored, ...]:
        """Kernels lie as (outputs, channels, rows, columns)."""
        _, height, width, channels = input
        kernel = Stored("kernel", (self.output, channels, height, width), (2, 3, 1, 0))
        if not self.batch_normalize:
            return *_vectors("bias", self.output), kernel
        statistics = _vectors("gamma mean variance", self.output)
        return *_vectors("beta", self.output), kernel, *statistics


@dataclass(frozen=True)
class Maxpool(Weightless):
    """``[maxpool]``: ``padding`` is that of both sides together, the smaller half above."""

    size: int
    stride: int
    padding: int

    @classmethod
    def of(cls, section: Section) -> Maxpool:
        """The layer of this section."""
        stride = section.integer("stride", 1, 1)
        size = section.integer("size", stride, 1)
        return cls(size, stride, section.integer("padding", size - 1))

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        sides = self._sides(x.shape[1]), self._sides(x.shape[2])
        return MaxPool(self.size, self.stride, sides)(x, scope)

    def _sides(self, length: int) -> tuple[int, int]:
        """The padding before and after that some window reaches: often none."""
        before = self.padding // 2
        windows = (length + self.padding - self.size) // self.stride + 1
        reached = (windows - 1) * self.stride + self.size
        return before, max(reached - before - length, 0)


class Avgpool(Weightless):
    """``[avgpool]``: the mean of each channel."""

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        return mean(x, (1, 2), keep=True)


@dataclass(frozen=True)
class Dropout(Weightless):
    """``[dropout]``: in training only."""

    probability: float

    @classmethod
    def of(cls, section: Section) -> Dropout:
        """The layer of this section."""
        probability = section.number("probability", 0.5, 0)
        if probability >= 1:
            raise section.error(f"probability={probability}: expected less than 1", "probability")
        return cls(probability)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        return NNDropout(self.probability)(x, scope)


@dataclass(frozen=True)
class Softmax(Weightless):
    """``[softmax]``: over each of ``groups`` equal parts of its inputs."""

    groups: int
    temperature: float

    @classmethod
    def of(cls, section: Section) -> Softmax:
        """The layer of this section."""
        temperature = section.number("temperature", 1, 0)
        if temperature == 0:
            raise section.error("temperature=0: expected more", "temperature")
        return cls(section.integer("groups", 1, 1), temperature)

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        n, outputs = x.shape[0], prod(x.shape[1:])
        if outputs % self.groups:
            raise ShapeError(f"groups={self.groups} of {outputs} inputs: expected a divisor")
        grouped = reshape(self.logits(x), (n, self.groups, outputs // self.groups))
        return reshape(softmax(grouped), (n, 1, 1, outputs))

    def logits(self, x: Expression) -> Expression:
        """(N, features): what the exponential function is applied to."""
        flat = flattened(x)
        return flat if self.temperature == 1 else flat * (1 / self.temperature)


@dataclass(frozen=True)
class Crop(Weightless):
    """``[crop]``: the middle of an image, with 0 to 1 spread to -1 to 1 if ``spreads``.

    The program crops elsewhere and mirrors in its training, which is left to the data here.
    """

    height: int
    width: int
    spreads: bool

    @classmethod
    def of(cls, section: Section) -> Crop:
        """The layer of this section."""
        height = section.integer("crop_height", 1, 1)
        width = section.integer("crop_width", 1, 1)
        return cls(height, width, not section.flag("noadjust"))

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        for axis, length in ((1, self.height), (2, self.width)):
            if length > x.shape[axis]:
                raise ShapeError(
                    f"{self.height} x {self.width} out of a map of {x.shape[1]} x {x.shape[2]}: "
                    f"expected no more than there is"
                )
            start = (x.shape[axis] - length) // 2
            x = part(x, axis, start, start + length)
        return x * 2.0 - 1.0 if self.spreads else x


class Cost(Weightless):
    """``[cost]``: what training compares; its output is its input."""

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        return x
