"""Layers on maps: (N, H, W, C), rows before columns, channels last."""

from __future__ import annotations

from dataclasses import dataclass

from dist_net.autodiff import Expression, average_pool, conv2d, max_pool, mean
from dist_net.autodiff.arrays import integer
from dist_net.autodiff.kernels.windows import Padding, Pair, pair
from dist_net.errors import ParameterError, ShapeError
from dist_net.nn.activations import Activation, linear
from dist_net.nn.initializers import Initializer, he_normal, zeros
from dist_net.nn.parameters import Scope


@dataclass(frozen=True)
class Conv2D:
    """activation(x * kernel + bias), a convolution: (N, H, W, C) to (N, H', W', filters).

    ``padding`` is "same", "valid", a number for each side, or ((top, bottom), (left, right)).
    With groups, each sees its part of the channels only, and makes its part of the filters.
    """

    filters: int
    size: int | Pair
    stride: int | Pair = 1
    padding: Padding = "same"
    groups: int = 1
    activation: Activation = linear
    use_bias: bool = True
    kernel_initializer: Initializer = he_normal
    bias_initializer: Initializer = zeros

    def __post_init__(self) -> None:
        integer("Conv2D: filters", self.filters)
        integer("Conv2D: groups", self.groups)
        if self.filters < 1 or self.groups < 1 or self.filters % self.groups:
            raise ParameterError(
                f"Conv2D: {self.filters} filters in {self.groups} groups; expected at least one "
                f"of each, and as many filters in each group"
            )

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        _expect_map("Conv2D", x)
        channels = x.shape[3]
        if channels % self.groups:
            raise ShapeError(
                f"Conv2D: {channels} channels of {x.shape} do not divide into {self.groups} groups"
            )
        shape = (*pair("Conv2D: size", self.size, 1), channels // self.groups, self.filters)
        kernel = scope.parameter("kernel", shape, self.kernel_initializer)
        y = conv2d(x, kernel, self.stride, self.padding, self.groups)
        if self.use_bias:
            y = y + scope.parameter("bias", (self.filters,), self.bias_initializer)
        return self.activation(y)


@dataclass(frozen=True)
class MaxPool:
    """The largest element of each window: (N, H, W, C) to (N, H', W', C).

    ``stride`` is ``size`` if left out; padding never wins.
    """

    size: int | Pair
    stride: int | Pair | None = None
    padding: Padding = "valid"

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        _expect_map("MaxPool", x)
        return max_pool(x, self.size, self.stride, self.padding)


@dataclass(frozen=True)
class AveragePool:
    """The mean of each window: (N, H, W, C) to (N, H', W', C).

    ``stride`` is ``size`` if left out; padding does not count.
    """

    size: int | Pair
    stride: int | Pair | None = None
    padding: Padding = "valid"

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        _expect_map("AveragePool", x)
        return average_pool(x, self.size, self.stride, self.padding)


@dataclass(frozen=True)
class GlobalAveragePool:
    """The mean of each channel: (N, H, W, C) to (N, C)."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        _expect_map("GlobalAveragePool", x)
        return mean(x, (1, 2))


def _expect_map(name: str, x: Expression) -> None:
    if x.ndim != 4:
        raise ShapeError(
            f"{name}: expected (N, H, W, C), got {x.shape}; give grey pictures an axis for their "
            f"one channel, with a Lambda that reshapes"
        )
