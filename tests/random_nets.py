"""Random nets of every layer and view, with random weights, and their answers."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff import Expression
from dist_net.autodiff.compiler.naive import evaluate_naively
from dist_net.errors import ShapeError

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Shape: TypeAlias = tuple[int, ...]

ACTIVATIONS = st.sampled_from(
    [nn.linear, nn.relu, nn.leaky_relu, nn.sigmoid, nn.tanh, nn.softmax, nn.gelu, nn.silu]
)
FILTERS = st.sampled_from([1, 4, 8, 16, 20])  # of 16 and more, 3x3 kernels are Winograd's
PADDINGS = st.sampled_from(["same", "valid", 1, ((0, 1), (1, 0))])
STRIDES = st.sampled_from([1, 1, 2, (1, 2)])

# ruff: noqa: ARG001 - every function that draws is called alike

# Views. Each function draws a layer for inputs of ``shape``, that of one sample.


def sliced(draw: Draw, shape: Shape) -> nn.Layer:
    """A slice of each axis, with at least one element."""
    index = [slice(None)] * (1 + len(shape))
    for axis, length in enumerate(shape):
        start = draw(st.integers(0, length - 1))
        stop = draw(st.integers(start + 1, length))
        index[axis + 1] = draw(
            st.sampled_from(
                [slice(None), slice(start, stop), slice(start, stop, 2), slice(start, None, -1)]
            )
        )
    return nn.Lambda(lambda x: x[(*index,)])


def dropped(draw: Draw, shape: Shape) -> nn.Layer:
    """One place of an axis, which is then of length one."""
    axis = draw(st.integers(1, len(shape)))
    place = draw(st.integers(-shape[axis - 1], shape[axis - 1] - 1))
    whole = (slice(None),) * axis
    return nn.Lambda(lambda x: x[(*whole, place)][(*whole, None)])


def among_zeros(draw: Draw, shape: Shape) -> nn.Layer:
    axis = draw(st.integers(1, len(shape)))
    places = (slice(None),) * axis + (draw(st.sampled_from([np.s_[::2], np.s_[::-1]])),)
    return nn.Lambda(lambda x: ad.zeros_around(x[places], x.shape, places))


def transposed(draw: Draw, shape: Shape) -> nn.Layer:
    axes = (0, *draw(st.permutations(range(1, len(shape) + 1))))
    return nn.Lambda(lambda x: ad.transpose(x, axes))


def reshaped(draw: Draw, shape: Shape) -> nn.Layer:
    channels = shape[-1]
    rows = draw(st.sampled_from([(-1, 1), (1, -1), shape[1::-1] if len(shape) == 3 else (1, -1)]))
    return nn.Lambda(lambda x: ad.reshape(x, (x.shape[0], *rows, channels)))


def repeated(draw: Draw, shape: Shape) -> nn.Layer:
    axis = draw(st.integers(1, len(shape)))
    return nn.Lambda(lambda x: ad.broadcast_to(ad.mean(x, axis, keepdims=True), x.shape))


def stopped(draw: Draw, shape: Shape) -> nn.Layer:
    return nn.Lambda(ad.stop_gradient)


def joined(draw: Draw, shape: Shape) -> nn.Layer:
    axis = draw(st.integers(1, len(shape)))
    return nn.Lambda(lambda x: ad.concatenate([x, x * 0.5], axis))


VIEWS = [sliced, sliced, dropped, among_zeros, transposed, reshaped, repeated, stopped, joined]

# Layers.


def convolution(draw: Draw, shape: Shape) -> nn.Layer:
    filters, groups = draw(FILTERS), draw(st.sampled_from([1, 1, 2, 4]))
    if filters % groups or shape[-1] % groups:
        groups = 1
    options = draw(STRIDES), draw(PADDINGS), groups, draw(ACTIVATIONS), draw(st.booleans())
    return nn.Conv2D(filters, draw(st.sampled_from([1, 1, 2, 3, (1, 3)])), *options)


def dilated(draw: Draw, shape: Shape) -> nn.Layer:
    options: dict[str, Any] = {
        "padding": draw(PADDINGS),
        "dilation": draw(st.sampled_from([2, (1, 3)])),
    }
    if draw(st.booleans()):
        return nn.DepthwiseConv2D(3, **options)
    return nn.Conv2D(draw(FILTERS), 3, **options)


def enlarged(draw: Draw, shape: Shape) -> nn.Layer:
    size, padding = draw(st.sampled_from([2, (1, 3), 4])), draw(st.sampled_from(["same", "valid"]))
    convolution = nn.Conv2DTranspose(draw(FILTERS), size, draw(STRIDES), padding, draw(ACTIVATIONS))
    return nn.Sequential(convolution, nn.Lambda(lambda x: x[:, :8, :8]))


def skipped(draw: Draw, shape: Shape) -> nn.Layer:
    layers = nn.Upsample((2, 1)), nn.MaxPool((2, 1)), nn.Dense(4, draw(ACTIVATIONS))
    return nn.Concatenate(nn.Sequential(), nn.Sequential(*layers))


def pointwise(draw: Draw, shape: Shape) -> nn.Layer:
    return nn.Conv2D(draw(FILTERS), 1, activation=draw(ACTIVATIONS))


def winograd(draw: Draw, shape: Shape) -> nn.Layer:
    return nn.Conv2D(16, 3, draw(st.sampled_from([1, 2])), 1, activation=draw(ACTIVATIONS))


def residual(draw: Draw, shape: Shape) -> nn.Layer:
    convolution = nn.Conv2D(shape[-1], draw(st.sampled_from([1, 3])), activation=draw(ACTIVATIONS))
    return nn.Residual(convolution, nn.BatchNorm(activation=draw(ACTIVATIONS)))


def normalization(draw: Draw, shape: Shape) -> nn.Layer:
    layers = [nn.BatchNorm(activation=draw(ACTIVATIONS)), nn.LayerNorm(), nn.GroupNorm(1)]
    return draw(st.sampled_from(layers))


def along_pixels(draw: Draw, shape: Shape) -> nn.Layer:
    """A layer of sequences, whose steps are the pixels, row by row."""
    layers = nn.Conv1D(4, 3, draw(st.sampled_from([1, 2]))), nn.MaxPool1D(2), nn.AveragePool1D(3, 1)
    layer = draw(st.sampled_from([*layers, nn.MultiHeadAttention(1, draw(st.booleans()))]))
    as_steps = nn.Lambda(lambda x: ad.reshape(x, (x.shape[0], -1, x.shape[-1])))
    return nn.Sequential(as_steps, layer, nn.Lambda(lambda x: x[:, None]))


def pooling(draw: Draw, shape: Shape) -> nn.Layer:
    kind = draw(st.sampled_from([nn.MaxPool, nn.AveragePool]))
    layer: nn.Layer = kind(draw(st.sampled_from([2, (1, 2), 3])), draw(STRIDES), "same")
    return layer


def dropout(draw: Draw, shape: Shape) -> nn.Layer:
    return nn.Dropout(0.5)


LAYERS = [
    *(convolution, convolution, pointwise, pointwise, winograd, residual),
    *(dilated, enlarged, skipped, normalization, pooling, dropout, along_pixels),
]


def applied(layers: list[nn.Layer], shape: Shape) -> Expression:
    return nn.Sequential(*layers)(ad.variable("x", (1, *shape)), nn.Scope())


@st.composite
def models(draw: Draw) -> nn.Model:
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.sampled_from([1, 3, 16])))
    is_scaled = draw(st.booleans())
    layers: list[nn.Layer] = [nn.Rescale(1 / 8)] if is_scaled else []
    for kinds in draw(st.lists(st.sampled_from([VIEWS, LAYERS]), min_size=1, max_size=7)):
        layer = draw(st.sampled_from(kinds))(draw, applied(layers, shape).shape[1:])
        with suppress(ShapeError):  # a window that is larger than what there is
            applied([*layers, layer], shape)
            layers.append(layer)
    ends = [nn.GlobalAveragePool(), nn.Flatten(), nn.GlobalMaxPool()]
    layers.append(draw(st.sampled_from(ends)))
    if draw(st.booleans()):
        layers.append(sliced(draw, applied(layers, shape).shape[1:]))
    layers += [nn.Dense(6, draw(ACTIVATIONS)), nn.Dense(3)]
    dtype = np.uint8 if is_scaled else np.float32
    return nn.Model(nn.Sequential(*layers), shape, input_dtype=dtype)


def weights_of(model: nn.Model) -> NDArray[np.float32]:
    """Random parameters and buffers, all apart; scales and variances above zero."""
    random = np.random.default_rng(0)
    weights = model.layout.initial(random)
    for name, view in model.layout.views(weights).items():
        if name.endswith(("gamma", "variance")):
            view[...] = random.uniform(0.5, 2, view.shape)
        elif not name.endswith("kernel"):
            view[...] = random.standard_normal(view.shape)
    return weights


def naively(
    model: nn.Model, weights: NDArray[np.float32], rows: NDArray[Any]
) -> NDArray[np.float32]:
    outputs = np.empty((len(rows), model.classes), np.float32)
    if len(rows) > 0:
        network = model.network(model.input(len(rows)), nn.Scope())
        with np.errstate(all="ignore"):
            outputs[:] = evaluate_naively([network], inputs=rows, **model.layout.views(weights))[0]
    return outputs
