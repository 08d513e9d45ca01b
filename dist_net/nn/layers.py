"""Layers: small immutable descriptions of functions, which a scope gives their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dist_net.autodiff import Expression, cast, mask, reshape, uniform
from dist_net.errors import ParameterError, ShapeError
from dist_net.nn.activations import Activation, linear
from dist_net.nn.initializers import Initializer, glorot_uniform, zeros
from dist_net.nn.parameters import Scope


class Layer(Protocol):
    """A function of a batch of inputs, axis 0 counting samples, with parameters in a scope."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        """The layer's output; raises ShapeError if ``x`` does not fit."""
        ...


@dataclass(frozen=True)
class Dense:
    """activation(x · kernel + bias): (N, I) to (N, units)."""

    units: int
    activation: Activation = linear
    kernel_initializer: Initializer = glorot_uniform
    bias_initializer: Initializer = zeros

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if x.ndim != 2:
            raise ShapeError(f"Dense: expected (N, features), got {x.shape}; put Flatten before it")
        kernel = scope.parameter("kernel", (x.shape[1], self.units), self.kernel_initializer)
        bias = scope.parameter("bias", (self.units,), self.bias_initializer)
        return self.activation(x @ kernel + bias)


@dataclass(frozen=True)
class Flatten:
    """(N, ...) to (N, features)."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return reshape(x, (x.shape[0], math.prod(x.shape[1:])))


@dataclass(frozen=True)
class Rescale:
    """x · scale + offset, as float32: pixels of 0 to 255 become numbers near 1."""

    scale: float = 1 / 255
    offset: float = 0.0

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return cast(x, "float32") * self.scale + self.offset


@dataclass(frozen=True)
class Lambda:
    """Any function of expressions without parameters."""

    function: Callable[[Expression], Expression]

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return self.function(x)


@dataclass(frozen=True)
class Dropout:
    """In training, each element is 0 with probability ``rate``, the others grow to make up for it.

    At inference, x itself (Srivastava et al. 2014, in the inverted form).
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ParameterError(f"Dropout: rate {self.rate}; expected 0 <= rate < 1")

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if not scope.training or self.rate == 0:
            return x
        return mask(x, uniform(x.shape, scope.generator) >= self.rate) * (1 / (1 - self.rate))


class Sequential:
    """Layers one after the other."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        for layer in self.layers:
            x = layer(x, scope.child(type(layer).__name__.lower()))
        return x


class Residual:
    """x + layers(x): the layers learn what to add (He et al. 2016)."""

    def __init__(self, *layers: Layer) -> None:
        self.inner = Sequential(*layers)

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        change = self.inner(x, scope)
        if change.shape != x.shape:
            raise ShapeError(f"Residual: the layers turn {x.shape} into {change.shape}")
        return x + change
