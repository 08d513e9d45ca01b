"""Layers on maps, and a network of them that learns."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.errors import ShapeError
from naming import naming

RNG = np.random.default_rng(11)
MAP = RNG.standard_normal((2, 5, 6, 4)).astype(np.float32)


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the sum of the products of the kernel with each window of the image."""
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape)
    return (windows * kernel).sum(axis=tuple(range(-kernel.ndim, 0)))


def applied(layer: nn.Layer, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """The layer's output, its parameters drawn by their initializers."""
    scope = nn.Scope()
    output = layer(ad.variable("x", x.shape, x.dtype), scope)
    layout = nn.Layout(scope.parameters)
    weights = layout.views(layout.initial(np.random.default_rng(seed)))
    return ad.evaluate([output], x=x, **weights)[0]


def shapes_of(layer: nn.Layer, *input_shape: int) -> tuple[tuple[int, ...], dict[str, object]]:
    """The shape of the output, and of each parameter."""
    scope = nn.Scope()
    output = layer(ad.variable("x", input_shape), scope)
    return output.shape, {name: each.shape for name, each in scope.parameters.items()}


def test_conv2d_is_a_correlation_a_bias_and_an_activation() -> None:
    kernel, bias = RNG.standard_normal((3, 3, 4, 2)), np.array([0.5, -0.5])
    layer = nn.Conv2D(
        *(2, 3),
        activation=nn.relu,
        kernel_initializer=nn.copy_of(kernel),
        bias_initializer=nn.copy_of(bias),
    )
    around = np.pad(MAP.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    expected = [
        [correlate(image, kernel[..., o])[..., 0] + bias[o] for o in range(2)] for image in around
    ]
    found = applied(layer, MAP)
    np.testing.assert_allclose(
        found, np.maximum(np.moveaxis(expected, 1, -1), 0), rtol=1e-5, atol=1e-5
    )
    assert found.min() == 0 < found.max()


def test_a_depthwise_convolution_is_one_correlation_for_each_channel() -> None:
    """With stride 2, an even height's odd line of padding is below, an odd width has one each."""
    kernel, bias = RNG.standard_normal((3, 3, 1, 4)), RNG.standard_normal(4)
    layer = nn.DepthwiseConv2D(
        *(3, 2),
        activation=nn.relu6,
        kernel_initializer=nn.copy_of(kernel),
        bias_initializer=nn.copy_of(bias),
    )
    x = RNG.standard_normal((2, 6, 5, 4)).astype(np.float32)
    around = np.pad(x.astype(np.float64), [(0, 0), (0, 1), (1, 1), (0, 0)])
    expected = [
        [correlate(image[..., c], kernel[..., 0, c])[::2, ::2] + bias[c] for c in range(4)]
        for image in around
    ]
    np.testing.assert_allclose(
        applied(layer, x), np.clip(np.moveaxis(expected, 1, -1), 0, 6), rtol=1e-5, atol=1e-5
    )


DEPTHWISE_SHAPES = (2, 2, 3, 4), {"kernel": (3, 2, 1, 4)}
DILATED_SHAPES = (2, 1, 2, 7), {"kernel": (3, 3, 4, 7), "bias": (7,)}
TRANSPOSED_SHAPES = (2, 11, 12, 7), {"kernel": (3, 1, 7, 4)}


@pytest.mark.parametrize(
    ("layer", "output", "parameters"),
    [
        (nn.Conv2D(7, 3), (2, 5, 6, 7), {"kernel": (3, 3, 4, 7), "bias": (7,)}),
        (nn.Conv2D(7, 3, use_bias=False), (2, 5, 6, 7), {"kernel": (3, 3, 4, 7)}),
        (nn.Conv2D(6, (1, 2), 2, "valid"), (2, 3, 3, 6), {"kernel": (1, 2, 4, 6), "bias": (6,)}),
        (nn.Conv2D(6, 3, (2, 1), 1), (2, 3, 6, 6), {"kernel": (3, 3, 4, 6), "bias": (6,)}),
        (nn.Conv2D(6, 3, groups=2), (2, 5, 6, 6), {"kernel": (3, 3, 2, 6), "bias": (6,)}),
        (
            nn.Conv2D(2, 3, 1, ((0, 2), (1, 0))),
            (2, 5, 5, 2),
            {"kernel": (3, 3, 4, 2), "bias": (2,)},
        ),
        (nn.DepthwiseConv2D(3), (2, 5, 6, 4), {"kernel": (3, 3, 1, 4), "bias": (4,)}),
        (nn.DepthwiseConv2D((3, 2), 2, "valid", use_bias=False), *DEPTHWISE_SHAPES),
        (nn.Conv2D(7, 3, padding="valid", dilation=2), *DILATED_SHAPES),
        (nn.DepthwiseConv2D(3, dilation=2), (2, 5, 6, 4), {"kernel": (3, 3, 1, 4), "bias": (4,)}),
        (nn.Conv2DTranspose(7, 3, 2), (2, 10, 12, 7), {"kernel": (3, 3, 7, 4), "bias": (7,)}),
        (nn.Conv2DTranspose(7, (3, 1), 2, "valid", use_bias=False), *TRANSPOSED_SHAPES),
        (nn.MaxPool(2), (2, 2, 3, 4), {}),
        (nn.MaxPool(3, 1, "same"), (2, 5, 6, 4), {}),
        (nn.MaxPool((1, 2), padding="same"), (2, 5, 3, 4), {}),
        (nn.AveragePool(2), (2, 2, 3, 4), {}),
        (nn.AveragePool(3, 2, 1), (2, 3, 3, 4), {}),
        (nn.GlobalAveragePool(), (2, 4), {}),
    ],
)
def test_layers_have_the_shapes_and_parameters_of_their_kind(layer, output, parameters) -> None:  # type: ignore[no-untyped-def]
    assert shapes_of(layer, *MAP.shape) == (output, parameters)


def test_a_transposed_convolution_adds_a_multiple_of_the_kernel_for_each_pixel() -> None:
    kernel, bias = RNG.standard_normal((2, 2, 3, 4)), np.array([0.5, -0.5, 0])
    initializers = {"kernel_initializer": nn.copy_of(kernel), "bias_initializer": nn.copy_of(bias)}
    found = applied(nn.Conv2DTranspose(3, 2, 2, activation=nn.relu, **initializers), MAP)
    blocks = np.einsum("nhwc,abfc->nhawbf", MAP, kernel).reshape(2, 10, 12, 3)
    np.testing.assert_allclose(found, np.maximum(blocks + bias, 0), rtol=1e-5, atol=1e-5)


def test_upsampling_repeats_pixels_and_a_skip_connection_puts_maps_side_by_side() -> None:
    larger = MAP.repeat(2, 1).repeat(3, 2)
    np.testing.assert_array_equal(applied(nn.Upsample((2, 3)), MAP), larger)
    network = nn.Sequential(
        nn.Upsample((2, 3)), nn.Concatenate(nn.Sequential(), nn.Lambda(lambda x: x * 2.0))
    )
    np.testing.assert_array_equal(applied(network, MAP), np.concatenate([larger, 2 * larger], 3))


def test_kernels_begin_with_the_spread_that_keeps_activations_in_scale() -> None:
    scope = nn.Scope()
    nn.Conv2D(256, 3, groups=2)(ad.variable("x", (1, 8, 8, 64)), scope)
    layout = nn.Layout(scope.parameters)
    values = layout.views(layout.initial(np.random.default_rng(0)))
    assert values["kernel"].std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
    assert not values["bias"].any()


def test_pools_are_maxima_and_means_of_windows() -> None:
    windows = MAP[:, :4].reshape(2, 2, 2, 3, 2, 4)
    np.testing.assert_array_equal(applied(nn.MaxPool(2), MAP), windows.max((2, 4)))
    np.testing.assert_allclose(
        applied(nn.AveragePool(2), MAP), windows.mean((2, 4)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        applied(nn.GlobalAveragePool(), MAP), MAP.mean((1, 2)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Conv2D(2, 3), "Conv2D"),
        (nn.Conv2DTranspose(2, 3), "Conv2DTranspose"),
        (nn.Upsample(), "Upsample"),
        (nn.MaxPool(2), "max_pool"),
        (nn.AveragePool(2), "average_pool"),
    ],
)
def test_what_is_no_map_is_refused_by_name(layer: nn.Layer, name: str) -> None:
    with pytest.raises(ShapeError, match=naming(name, "(N, H, W, C)", (2, 28, 28))):
        layer(ad.variable("x", (2, 28, 28)), nn.Scope())


def test_channels_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ShapeError, match=naming("conv2d", (2, 5, 6, 4), "3 groups")):
        applied(nn.Conv2D(6, 3, groups=3), MAP)


def test_filters_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ShapeError, match=naming("conv2d", (2, 5, 6, 4), "2 groups")):
        applied(nn.Conv2D(5, 3, groups=2), MAP)


@pytest.mark.parametrize(("filters", "groups"), [(0, 1), (4, 0), (-4, 2)])
def test_less_than_one_filter_or_group_is_refused(filters: int, groups: int) -> None:
    with pytest.raises(ShapeError, match=naming("Conv2D", "at least 1")):
        nn.Conv2D(filters, 3, groups=groups)
