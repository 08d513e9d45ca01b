"""Layers: small immutable descriptions of functions that declare their parameters in a scope.

Activations are plain functions of expressions. Axis 0 is the sample axis. Maps are (N, H, W, C):
rows before columns, channels last.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Literal, Never, Protocol, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from dist_net import autodiff as ad
from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import integer, shown
from dist_net.autodiff.expression import Variable, require_map, topological_order
from dist_net.autodiff.kernels.windows import Padding, Pair, pair
from dist_net.autodiff.operations import convolution, matmul
from dist_net.autodiff.operations.fused import deviations, standardize
from dist_net.autodiff.operations.indexing import Take, checked_indices
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.autodiff.operations.selection import root_of_variance
from dist_net.errors import DTypeError, ParameterError, ShapeError
from dist_net.ground.spelling import KnownOptions, explained, no_attribute, suggestion
from dist_net.nn.parameters import (
    Initializer,
    Scope,
    glorot_uniform,
    he_normal,
    ones,
    small_normal,
    zeros,
)

Activation = Callable[[Expression], Expression]


def linear(x: Expression) -> Expression:
    return x


def relu6(x: Expression) -> Expression:
    """Return min(max(x, 0), 6); the derivative at 0 and at 6 is 0."""
    return ad.clip(x, 0.0, 6.0)


ACTIVATIONS: dict[str, Activation] = {
    each.__name__: each
    for each in (
        *(ad.gelu, ad.leaky_relu, linear, ad.relu, relu6),
        *(ad.sigmoid, ad.silu, ad.softmax, ad.softplus, ad.tanh),
    )
}


def activate(x: Expression, activation: Activation | str | None) -> Expression:
    """Return ``activation(x)``, by name, or x for None; raise ``ParameterError`` for others."""
    if activation is None:
        return x
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ParameterError(
                f"unknown activation {activation!r}; {suggestion(activation, ACTIVATIONS)}"
            )
        activation = ACTIVATIONS[activation]
    activated = activation(x) if callable(activation) else activation
    if not isinstance(activated, Expression):
        raise ParameterError(
            f"the activation {shown(activation):.80} is no function of an expression that returns "
            f"one; expected one of {', '.join(ACTIVATIONS)}, such a function, or None"
        )
    return activated


COUNTS = "units", "filters", "groups", "heads"


class Layer(Protocol):
    """A function of a batch of inputs, with parameters in a scope."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        """Return the layer's output; raise ``ShapeError`` if ``x`` does not fit."""
        ...


class ExplainedLayer:
    """A layer that raises UnknownOptionError if it is called like one of another library."""

    def __init_subclass__(cls) -> None:
        if "__call__" in vars(cls):
            expected = "(x, scope). A model calls its layers: Model(network, input_shape)"
            cls.__call__ = explained(cls.__name__ + expected)(cls.__call__)  # type: ignore[method-assign]


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True, repr=False)
class Described(KnownOptions, ExplainedLayer):
    """A layer: its subclasses are frozen dataclasses, whose ``repr`` omits defaults.

    Raise ``ShapeError`` unless the arguments in ``COUNTS`` are integers from 1.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, repr=False)(cls)
        names = ", ".join(each.name for each in fields(cls))
        cls.__init__ = explained(f"{cls.__name__}({names})")(cls.__init__)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name in COUNTS:
                integer(f"{type(self).__name__}: {each.name}", getattr(self, each.name), 1)

    def __repr__(self) -> str:
        given = [(each, shown(getattr(self, each.name))) for each in fields(self)]
        arguments = [f"{each.name}={text}" for each, text in given if text != shown(each.default)]
        return f"{type(self).__name__}({', '.join(arguments)})"


class Dense(Described):
    """activation(x · kernel + bias): (N, I) to (N, units), or (..., I) to (..., units)."""

    units: int
    activation: Activation | str | None = linear
    kernel_initializer: Initializer = glorot_uniform
    bias_initializer: Initializer = zeros

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if x.ndim < 2:
            raise ShapeError(f"Dense: expected (N, ..., features), got {x.shape}")
        _expect_floats("Dense", x)
        *positions, features = x.shape
        kernel = scope.parameter("kernel", (features, self.units), self.kernel_initializer)
        bias = scope.parameter("bias", (self.units,), self.bias_initializer)
        rows = ad.reshape(x, (math.prod(positions), features))  # one product instead of a stack
        y = activate(rows @ kernel + bias, self.activation)
        return ad.reshape(y, (*positions, self.units))


class Embedding(Described):
    """The row of a trained table for each integer in [0, count): (N, ...) to (N, ..., width).

    For another integer, the plan raises ``IndexRangeError``.
    """

    count: int
    width: int
    table_initializer: Initializer = small_normal

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return ad.apply(Take(0), self.table(scope), checked_indices("Embedding", x, self.count))

    def table(self, scope: Scope) -> Expression:
        """Return the table, (count, width)."""
        return scope.parameter("table", (self.count, self.width), self.table_initializer)


class Unembedding(Described):
    """x · tableᵀ: a score for each row of an embedding's table, (N, ..., width) to (N, ..., count).

    Both layers share the table, which has one gradient.
    """

    embedding: Embedding

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return x @ self.embedding.table(scope.child("embedding", self.embedding)).T


class Conv2D(Described):
    """activation(x * kernel + bias), a convolution: (N, H, W, C) to (N, H', W', filters).

    ``padding`` is "same", "valid", a number for every side, or ((top, bottom), (left, right)).
    "same" is as in TensorFlow: H' is H / stride, rounded up; if the padding is odd, the bottom or
    right gets the extra line. With ``groups``, each group of filters reads only its own channels.
    The taps of a filter are ``dilation`` pixels apart; a stride above 1 needs a dilation of 1.

    Uses the operation ``dist_net.autodiff.operations.convolution.Conv2D``.
    """

    filters: int
    size: int | Pair
    stride: int | Pair = 1
    padding: Padding = "same"
    groups: int = 1
    activation: Activation | str | None = linear
    use_bias: bool = True
    kernel_initializer: Initializer = he_normal
    bias_initializer: Initializer = zeros
    dilation: int | Pair = 1

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        require_map("Conv2D", x)
        _expect_floats("Conv2D", x)
        channels = x.shape[3] // self.groups
        shape = (*pair("Conv2D: size", self.size, 1), channels, self.filters)
        kernel = scope.parameter("kernel", shape, self.kernel_initializer)
        y = ad.conv2d(x, kernel, self.stride, self.padding, self.groups, self.dilation)
        if self.use_bias:
            y = y + scope.parameter("bias", (self.filters,), self.bias_initializer)
        return activate(y, self.activation)


class DepthwiseConv2D(Described):
    """``Conv2D`` with a filter (kh, kw, 1, C) per channel: (N, H, W, C) to (N, H', W', C)."""

    size: int | Pair
    stride: int | Pair = 1
    padding: Padding = "same"
    activation: Activation | str | None = linear
    use_bias: bool = True
    kernel_initializer: Initializer = he_normal
    bias_initializer: Initializer = zeros
    dilation: int | Pair = 1

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        require_map("DepthwiseConv2D", x)
        return Conv2D(x.shape[3], groups=x.shape[3], **vars(self))(x, scope)


class Conv2DTranspose(Described):
    """activation(y + bias), y a transposed convolution: (N, H, W, C) to (N, H', W', filters).

    Each pixel adds its multiple of the kernel, (kh, kw, filters, C), to a map of ``stride`` times
    the size. With "valid", the map is larger by the part of the last windows beyond that.
    """

    filters: int
    size: int | Pair
    stride: int | Pair = 1
    padding: Padding = "same"
    activation: Activation | str | None = linear
    use_bias: bool = True
    kernel_initializer: Initializer = glorot_uniform
    bias_initializer: Initializer = zeros

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        require_map("Conv2DTranspose", x)
        _expect_floats("Conv2DTranspose", x)
        shape = (*pair("Conv2DTranspose: size", self.size, 1), self.filters, x.shape[3])
        kernel = scope.parameter("kernel", shape, self.kernel_initializer)
        y = ad.conv2d_transpose(x, kernel, self.stride, self.padding)
        if self.use_bias:
            y = y + scope.parameter("bias", (self.filters,), self.bias_initializer)
        return activate(y, self.activation)


class Upsample(Described):
    """Each pixel repeated ``size`` times: (N, H, W, C) to (N, H · rows, W · columns, C)."""

    size: int | Pair = 2

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        require_map("Upsample", x)
        down, across = pair("Upsample: size", self.size, 1)
        images, height, width, channels = x.shape
        repeated = (images, height, down, width, across, channels)
        pixels = ad.broadcast_to(x[:, :, None, :, None], repeated)
        return ad.reshape(pixels, (images, height * down, width * across, channels))


class MaxPool(Described):
    """The largest element of each window: (N, H, W, C) to (N, H', W', C).

    ``stride`` defaults to ``size``; padding is ignored by the maximum.
    """

    size: int | Pair
    stride: int | Pair | None = None
    padding: Padding = "valid"

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return ad.max_pool(x, self.size, self.stride, self.padding)


class AveragePool(Described):
    """The mean of each window: (N, H, W, C) to (N, H', W', C).

    ``stride`` defaults to ``size``; the mean excludes padding.
    """

    size: int | Pair
    stride: int | Pair | None = None
    padding: Padding = "valid"

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return ad.average_pool(x, self.size, self.stride, self.padding)


class GlobalAveragePool(Described):
    """The mean of each channel: (N, ..., C) to (N, C).

    Of a record, it is the mean of the ``sequence``, (N, T, C), where the ``mask``, bools (N, T), is
    true, and 0 if it is true nowhere.
    """

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        given = fields_of("GlobalAveragePool", x, "sequence", "mask")
        axes = _places("GlobalAveragePool", given["sequence"])
        if "mask" not in given:
            return ad.mean(given["sequence"], axes)
        return ad.masked_mean(given["sequence"], given["mask"][..., None], axes)


class GlobalMaxPool(Described):
    """The largest element of each channel: (N, ..., C) to (N, C)."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return ad.max(x, _places("GlobalMaxPool", x))


def _places(name: str, x: Expression) -> range:
    """Return the axes between samples and channels; raise ``ShapeError`` if there are none."""
    if x.ndim < 3:
        raise ShapeError(f"{name}: expected (N, ..., C) with places between, got {x.shape}")
    return range(1, x.ndim - 1)


def fields_of(name: str, x: Expression, first: str, *others: str) -> dict[str, Expression]:
    """Return the fields of a record, or ``x`` as the ``first``; raise ShapeError for others."""
    given = {each: x[each] for each in x.dtype.names} if x.dtype.names else {first: x}
    if first not in given or not given.keys() <= {first, *others}:
        raise ShapeError(f"{name}: fields {[*given]}; expected {first!r}, and any of {[*others]}")
    return given


class BatchNorm(Described):
    """activation((x - mean) · gamma / deviation + beta) for each channel, the last axis.

    Training normalises by the mean and variance of the batch, and the buffers ``mean`` and
    ``variance`` move towards them: moving ← momentum·moving + (1-momentum)·batch. Inference, and
    training in ``FrozenBatchNorm``, uses the buffers (Ioffe and Szegedy 2015, arXiv 1502.03167). So
    does a minibatch of one row, such as an epoch's last, whose variance is always 0. The batch
    variance is the mean of squares, as in Keras; PyTorch's moving variance is larger by
    rows / (rows - 1).

    The deviation is √(variance + epsilon), or √variance + epsilon with ``epsilon_on``
    "deviation", as Darknet computes it on CPUs.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    epsilon_on: Literal["variance", "deviation"] = "variance"
    activation: Activation | str | None = linear

    def __post_init__(self) -> None:
        if not self.epsilon > 0 or self.epsilon_on not in ("variance", "deviation"):
            raise ParameterError(
                f"BatchNorm: epsilon {self.epsilon} on {self.epsilon_on!r}; expected a number "
                f"above 0, on 'variance' or 'deviation'"
            )

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if x.ndim < 2:
            raise ShapeError(f"BatchNorm: expected (N, ..., channels), got {x.shape}")
        _expect_floats("BatchNorm", x)
        channels = x.shape[-1:]
        declared = scope.with_batch_norm("fixed", scope.batch_norm == "fixed")
        gamma = declared.parameter("gamma", channels, ones)
        beta = declared.parameter("beta", channels, zeros)
        mean = scope.buffer("mean", channels, zeros, self.momentum)
        variance = scope.buffer("variance", channels, ones, self.momentum)
        scale = gamma / self._deviation(variance)
        if not scope.training:
            return activate((x - mean) * scale + beta, self.activation)
        if scope.batch_norm != "batch" or x.size == x.shape[-1]:
            shift = beta - mean * scale
            if isinstance(x.operation, convolution.Conv2D):
                # Scaled filters spare a pass over the maps, and the memory of a copy for it.
                images, filters = x.inputs
                normal = ad.apply(x.operation, images, filters * scale) + shift
            else:
                rows = ad.reshape(x, (-1, *channels))
                normal = ad.reshape(ad.apply(ScaleAndShift(), shift, rows, scale), x.shape)
            return activate(normal, self.activation)
        normal, *batch = ad.batch_normalize(x, gamma, beta, self._deviation, scope.in_parts)
        for buffer, seen in zip((mean, variance), batch, strict=True):
            scope.observe(buffer, seen)
        return activate(normal, self.activation)

    def _deviation(self, variance: Expression) -> Expression:
        if self.epsilon_on == "variance":
            return ad.sqrt(variance + self.epsilon)
        return root_of_variance(variance) + self.epsilon


class LayerNorm(Described):
    """(x - mean) / √(variance + epsilon) · gamma + beta, with the mean and variance of the last
    axis of each sample (Ba et al. 2016, arXiv 1607.06450)."""

    epsilon: float = 1e-5

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        _expect_floats("LayerNorm", x)
        return _scaled(standardize(x, self.epsilon), scope)


class GroupNorm(Described):
    """As ``LayerNorm``, with the mean and variance of each of ``groups`` of channels over all
    places of a sample: (N, ..., C), with gamma and beta per channel (Wu and He 2018)."""

    groups: int
    epsilon: float = 1e-5

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        _expect_floats("GroupNorm", x)
        if x.ndim < 2 or x.shape[-1] % self.groups:
            raise ShapeError(
                f"GroupNorm: expected (N, ..., C) with C divisible by {self.groups} groups, got "
                f"{x.shape}"
            )
        count, *places, channels = x.shape
        groups = (count, math.prod(places), self.groups, channels // self.groups)
        parts = deviations(ad.reshape(x, groups), self.epsilon, (1, 3))
        return _scaled(ad.reshape(ad.divide(*parts), x.shape), scope)


def _scaled(x: Expression, scope: Scope) -> Expression:
    """Return x · gamma + beta for each channel, the last axis."""
    gamma = scope.parameter("gamma", x.shape[-1:], ones)
    return x * gamma + scope.parameter("beta", x.shape[-1:], zeros)


class FrozenBatchNorm(Described):
    """A network whose batch norm also uses its buffers in training; for fine-tuning.

    Means and variances stay constant, and so do gamma and beta unless ``trained``. Parameters and
    buffers keep the network's names.
    """

    network: Layer
    trained: bool = True

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return self.network(x, scope.with_batch_norm("frozen" if self.trained else "fixed"))


class Frozen(Described):
    """A network that is not trained: no gradient, weight decay or momentum changes it.

    Its parameters become buffers of the same names, which stay constant, also in a cluster. Batch
    norm uses its means and variances; dropout drops. A layer object that is used again must be
    frozen in each place.
    """

    network: Layer

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return self.network(x, scope.with_batch_norm("frozen", is_frozen=True))


class Flatten(Described):
    """(N, ...) to (N, features)."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return ad.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


class Rescale(Described):
    """x · scale + offset, as float32; the defaults map pixels from 0..255 to 0..1.

    Both are numbers, or arrays that broadcast, such as one number for each channel.
    """

    scale: float | NDArray[np.floating] = 1 / 255
    offset: float | NDArray[np.floating] = 0.0

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        scale, offset = (ad.constant(each, np.float32) for each in (self.scale, self.offset))
        return ad.astype(x, "float32") * scale + offset


class Lambda(Described):
    """A layer that calls a function of expressions; it has no parameters."""

    function: Callable[[Expression], Expression]

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return self.function(x)


class Dropout(Described):
    """In training, set each element to 0 with probability ``rate`` and scale up the others.

    At inference, return x (inverted dropout, Srivastava et al. 2014).
    """

    rate: float

    def __post_init__(self) -> None:
        if not (isinstance(self.rate, Real) and 0 <= self.rate < 1):
            raise ParameterError(f"Dropout: rate {self.rate!r}; expected 0 <= rate < 1")

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if not scope.training or self.rate == 0:
            return x
        kept = ad.where(ad.uniform(x.shape, scope.generator) >= self.rate, x, 0.0)
        return kept * (1 / (1 - self.rate))


SEQUENTIAL_HABITS = {
    **dict.fromkeys(("add", "append"), "pass all layers: Sequential(Dense(64, 'relu'), Dense(10))"),
    **dict.fromkeys(
        ("compile", "evaluate", "fit", "parameters", "predict", "save", "summary", "to", "train"),
        "make a model of it: Model(Sequential(...), input_shape)",
    ),
}


class Sequential(ExplainedLayer):
    """A chain of layers, passed as arguments or as lists."""

    def __init__(self, *layers: Layer | Sequence[Layer]) -> None:
        self.layers: tuple[Layer, ...] = tuple(
            layer
            for given in layers
            for layer in (given if isinstance(given, list | tuple) else (given,))
        )
        activations: list[object] = [*ACTIVATIONS.values()]
        for layer in self.layers:
            if isinstance(layer, type) or not callable(layer) or layer in activations:
                raise ParameterError(
                    f"{type(self).__name__}: {shown(layer)} is not a layer; expected objects such "
                    f"as Dense(10). Pass an activation to the layer before, Dense(10, 'relu'), or "
                    f"use Lambda(relu)"
                )

    if not TYPE_CHECKING:  # a checker would accept any name

        def __getattr__(self, name: str) -> Never:
            raise no_attribute(self, name, SEQUENTIAL_HABITS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        for layer in self.layers:
            named = layer.network if isinstance(layer, Frozen) else layer
            inner = scope.child(type(named).__name__.lower(), named)
            x = layer(x, inner)
            if not isinstance(named, Sequential):
                scope.outputs.append((inner.prefix, x))
        return x


class Residual(Sequential):
    """x + layers(x): the layers learn what to add (He et al. 2016)."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        change = super().__call__(x, scope)
        if change.shape != x.shape:
            raise ShapeError(f"Residual: the layers turn {x.shape} into {change.shape}")
        return x + change


class Concatenate(Sequential):
    """The outputs of each layer on the same x, side by side on the last axis.

    ``Concatenate(Sequential(), layer)`` is a skip connection (Ronneberger et al. 2015).
    Uses the operation ``dist_net.autodiff.operations.shaping.Concatenate``.
    """

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return ad.concatenate([Sequential(each)(x, scope) for each in self.layers], -1)


class Field(Described):
    """One of several inputs: the field ``name`` of a record, (N,) to (N, ...)."""

    name: str

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return x[self.name]


class NamedOutputs(Described):
    """Several outputs: a record (N,) of the outputs of each layer on the same x, by name."""

    layers: Mapping[str, Layer]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(self.layers))

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        layers = self.layers.items()
        return ad.record(**{name: Sequential(each)(x, scope.child(name)) for name, each in layers})


def _expect_floats(name: str, x: Expression) -> None:
    if x.dtype.kind != "f":
        raise DTypeError(
            f"{name}: inputs are {x.dtype}; expected float32. For pixels, start the network with "
            f"Rescale(): Sequential(Rescale(), ...). For floats, build the model with "
            f"input_dtype=np.float32 and convert its inputs with astype(np.float32)"
        )


PARAMETRIC = matmul.MatMul | convolution.Conv2D


class Features(Described):
    """A network without its last dense layer or convolution and everything after it.

    The output, ``(N, features)``, is that layer's input, averaged over rows and columns if it is a
    map. The remaining parameters and buffers keep their names.
    """

    network: Layer

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        earlier = scope.parameters.keys() | scope.buffers.keys()
        output = self.network(x, scope)
        nodes = topological_order([output])
        last = next((each for each in nodes[::-1] if isinstance(each.operation, PARAMETRIC)), None)
        if last is None:
            raise ShapeError(f"Features: {output} has no dense layer or convolution to remove")
        features = last.inputs[0]
        if features.ndim == 4:
            features = ad.mean(features, (1, 2))
        if features.ndim != 2:
            raise ShapeError(
                f"Features: the last layer's input has shape {features.shape}; expected "
                f"(N, features) or (N, H, W, features)"
            )
        used = [each.operation for each in topological_order([features])]
        reached = {each.name for each in used if isinstance(each, Variable)}
        scope.forget((scope.parameters.keys() | scope.buffers.keys()) - earlier - reached)
        return features
