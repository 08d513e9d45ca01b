"""Convolution and both of its gradients, against SciPy's correlation, loops, and PyTorch."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.kernels.convolution import problem, training
from dist_net.autodiff.kernels.convolution.training import (
    convolve,
    filter_gradient,
    input_gradient,
)
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import windows
from dist_net.errors import DTypeError, ShapeError
from naming import naming

FIXED = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def draw(*shape):
    return np.random.default_rng([3, *shape]).standard_normal(shape)


def padded(x, seen):
    return np.pad(x, [(0, 0), *seen.padding, (0, 0)])


def by_windows(x, kernel, seen, groups):
    """Channel by channel, every stride-th element of the sums over all windows."""
    images, filters = len(x), kernel.shape[3]
    down, across = seen.stride
    around, inside = padded(x, seen), kernel.shape[2]
    out = np.zeros((images, *seen.output(*x.shape[1:3]), filters))
    for n, o, c in itertools.product(range(images), range(filters), range(inside)):
        channel = o // (filters // groups) * inside + c
        windows = np.lib.stride_tricks.sliding_window_view(
            around[n, :, :, channel], kernel.shape[:2]
        )
        whole = np.einsum("ijhw,hw->ij", windows, kernel[:, :, c, o])
        out[n, :, :, o] += whole[::down, ::across]
    return out


def gradients_by_loops(x, kernel, cotangent, seen, groups):
    """What flows back to the map and to the kernel, output by output."""
    around = padded(x, seen)
    to_x, to_kernel = np.zeros_like(around), np.zeros_like(kernel)
    inside, filters = kernel.shape[2:]
    for n, i, j, o in itertools.product(*map(range, cotangent.shape)):
        top, left = i * seen.stride[0], j * seen.stride[1]
        first = o // (filters // groups) * inside
        window = (
            n,
            slice(top, top + seen.size[0]),
            slice(left, left + seen.size[1]),
            slice(first, first + inside),
        )
        to_x[window] += cotangent[n, i, j, o] * kernel[..., o]
        to_kernel[..., o] += cotangent[n, i, j, o] * around[window]
    (top, _), (left, _) = seen.padding
    return to_x[:, top : top + x.shape[1], left : left + x.shape[2]], to_kernel


def ours(x, kernel, cotangent, stride, padding, groups, dilation=1):
    """The convolution, and what flows back from a cotangent to the map and to the kernel."""
    inputs = [ad.variable("x", x.shape, x.dtype), ad.variable("kernel", kernel.shape, x.dtype)]
    out = ad.conv2d(*inputs, stride, padding, groups, dilation)
    total = ad.sum(out * cotangent)
    return ad.evaluate([out, *ad.gradients(total, inputs)], x=x, kernel=kernel)


def agree(x, kernel, stride, padding, groups, rtol=1e-12):
    """All three against the oracles."""
    seen = windows(kernel.shape[:2], stride, padding, x.shape[1:3])
    shape = (len(x), *seen.output(*x.shape[1:3]), kernel.shape[3])
    cotangent = draw(*shape)
    expected = by_windows(x, kernel, seen, groups)
    to_x, to_kernel = gradients_by_loops(x, kernel, cotangent, seen, groups)
    found = ours(x, kernel, cotangent, stride, padding, groups)
    for value, wanted in zip(found, (expected, to_x, to_kernel), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=rtol, atol=rtol, strict=True)


EMPTY = ["images", "channels", "filters"]

# Of the map, of the kernel; stride, padding, groups.
GEOMETRIES = {
    "3x3": ((2, 5, 4, 3), (3, 3, 3, 2), 1, "same", 1),
    "3x3 of many channels": ((1, 4, 5, 6), (3, 3, 6, 7), 1, 1, 1),
    "1x1": ((2, 3, 4, 5), (1, 1, 5, 6), 1, "same", 1),
    "1x1, padded": ((1, 3, 4, 5), (1, 1, 5, 2), 1, 1, 1),
    "1x1, stride 2": ((2, 5, 4, 6), (1, 1, 6, 3), 2, "valid", 1),
    "1x1, stride 2, groups": ((1, 5, 4, 4), (1, 1, 2, 6), 2, 0, 2),
    "Darknet's downsampling": ((1, 6, 8, 5), (3, 3, 5, 6), 2, 1, 1),
    "TensorFlow's downsampling": ((1, 6, 8, 5), (3, 3, 5, 6), 2, "same", 1),
    "odd map, stride 2": ((2, 7, 5, 2), (3, 3, 2, 3), 2, "same", 1),
    "unequal everything": ((1, 9, 7, 2), (2, 5, 2, 3), (3, 2), ((1, 0), (2, 3)), 1),
    "valid": ((1, 6, 5, 6), (3, 2, 6, 4), 1, "valid", 1),
    "stride beyond the kernel": ((1, 8, 7, 5), (2, 1, 5, 3), 3, "valid", 1),
    "kernel larger than the map": ((2, 2, 3, 2), (5, 7, 2, 3), 1, "same", 1),
    "more padding than kernel": ((1, 3, 3, 2), (2, 2, 2, 2), 1, 4, 1),
    "more padding than kernel, stride 2": ((1, 3, 4, 6), (2, 3, 6, 2), 2, ((3, 4), (5, 4)), 1),
    "one pixel": ((3, 1, 1, 6), (3, 3, 6, 4), 1, "same", 1),
    "one channel, one filter": ((1, 5, 5, 1), (3, 3, 1, 1), 1, "same", 1),
    "groups": ((2, 5, 4, 6), (3, 3, 2, 9), 1, "same", 3),
    "groups of many channels": ((1, 4, 4, 12), (3, 3, 6, 4), 2, 1, 2),
    "a filter for each channel": ((2, 5, 4, 4), (3, 3, 1, 4), 1, "same", 4),
    "a filter for each channel, stride 2": ((2, 5, 4, 4), (3, 3, 1, 4), 2, 1, 4),
    "5x5 for each channel, stride 2": ((2, 6, 8, 3), (5, 5, 1, 3), 2, "same", 3),
    "for each channel, unequal": ((1, 9, 7, 2), (2, 5, 1, 2), (3, 2), ((1, 0), (2, 3)), 2),
    "for each channel, stride beyond the kernel": ((1, 8, 7, 5), (2, 1, 1, 5), 3, "valid", 5),
    "for each channel, larger than the map": ((2, 2, 3, 2), (5, 7, 1, 2), 1, "same", 2),
    "for each channel, more padding": ((1, 3, 4, 6), (2, 3, 1, 6), 2, ((3, 4), (5, 4)), 6),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_values_and_gradients_are_those_of_windows_and_of_loops(geometry):
    x, kernel, *how = geometry
    agree(draw(*x), draw(*kernel), *how)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_first_and_second_derivatives_agree_with_differences(geometry):
    x, kernel, *how = geometry

    def build(x, kernel):
        return ad.tanh(ad.conv2d(ad.square(x), kernel, *how) * 0.1)

    check_gradients(build, draw(*x), draw(*kernel) * 0.2, rng=np.random.default_rng(0))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_it_does_not_matter_how_it_is_cut_into_strips(geometry, monkeypatch):
    monkeypatch.setattr(training, "STRIP_BYTES", 1)
    x, kernel, *how = geometry
    for pixels in (1, 5, 20):
        monkeypatch.setattr(training, "MIN_PIXELS", pixels)
        monkeypatch.setattr(problem, "PRODUCTS", pixels * math.prod(kernel))
        agree(draw(*x), draw(*kernel), *how)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dilation", [2, (1, 3)])
@pytest.mark.parametrize("padding", ["same", "valid", ((3, 0), (1, 4))])
def test_a_dilated_convolution_has_zeros_between_its_taps(groups, dilation, padding):
    x, kernel = draw(2, 8, 9, 4), draw(2, 3, 4 // groups, 4)
    place = tuple(np.s_[::each] for each in np.broadcast_to(dilation, 2))
    shape = tuple(range((n - 1) * part.step + 1) for n, part in zip((2, 3), place, strict=True))
    spread = np.zeros((*map(len, shape), *kernel.shape[2:]))
    spread[place] = kernel
    seen = windows((2, 3), 1, padding, (8, 9), dilation)
    cotangent = draw(2, *seen.output(8, 9), 4)
    by_taps = ours(x, spread, cotangent, 1, padding, groups)
    found = ours(x, kernel, cotangent, 1, padding, groups, dilation)
    for value, wanted in zip(found, (*by_taps[:2], by_taps[2][place]), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)

    def build(x, kernel):
        return ad.tanh(ad.conv2d(x, kernel, 1, padding, groups, dilation) * 0.1)

    check_gradients(build, x, kernel * 0.2, rng=np.random.default_rng(0))


def gradients_by_taps(x, kernel, cotangent, seen, groups):
    """The convolution and both gradients, as a sum over the taps of the kernel."""
    around = padded(x, seen)
    rows, columns = cotangent.shape[1:3]
    out, to_x, to_kernel = np.zeros_like(cotangent), np.zeros_like(around), np.zeros_like(kernel)
    inside, filters = kernel.shape[2], kernel.shape[3] // groups
    (down, across), (tall, wide) = seen.stride, seen.dilation
    for i, j, group in itertools.product(*map(range, seen.size), range(groups)):
        own = slice(group * filters, (group + 1) * filters)
        read = (
            slice(None),
            slice(i * tall, i * tall + (rows - 1) * down + 1, down),
            slice(j * wide, j * wide + (columns - 1) * across + 1, across),
            slice(group * inside, (group + 1) * inside),
        )
        out[..., own] += around[read] @ kernel[i, j, :, own]
        to_x[read] += cotangent[..., own] @ kernel[i, j, :, own].T
        to_kernel[i, j, :, own] += np.einsum("nhwc,nhwo->co", around[read], cotangent[..., own])
    (top, _), (left, _) = seen.padding
    return out, to_x[:, top : top + x.shape[1], left : left + x.shape[2]], to_kernel


STRIDES = DILATIONS = (1, 1), (1, 2), (2, 1), (2, 2)
CHANNELS_AND_GROUPS = (1, 1), (4, 1), (5, 1), (6, 2), (10, 2), (12, 4), (5, 5), (8, 8)


@pytest.mark.parametrize(("channels", "groups"), CHANNELS_AND_GROUPS)
def test_every_combination_of_options_is_the_sum_over_taps(channels, groups):
    sizes, paddings = [(1, 1), (3, 3), (2, 3)], ["same", "valid", 2, ((1, 0), (0, 3))]
    for filters, size, stride, dilation, padding in itertools.product(
        {groups, 6 * groups}, sizes, STRIDES, DILATIONS, paddings
    ):
        if any(min(both) > 1 for both in zip(stride, dilation, strict=True)):
            continue
        seen = windows(size, stride, padding, (6, 7), dilation)
        x, kernel = draw(2, 6, 7, channels), draw(*size, channels // groups, filters)
        cotangent = draw(2, *seen.output(6, 7), filters)
        wanted = gradients_by_taps(x, kernel, cotangent, seen, groups)
        found = ours(x, kernel, cotangent, stride, padding, groups, dilation)
        for value, each in zip(found, wanted, strict=True):
            np.testing.assert_allclose(value, each, rtol=1e-12, atol=1e-12, strict=True)


def test_a_stride_with_a_dilation_is_refused():
    with pytest.raises(ShapeError, match=naming("conv2d", (2, 1), (3, 1), 1)):
        ad.conv2d(*variables((1, 9, 9, 1), (3, 3, 1, 1)), stride=(2, 1), dilation=(3, 1))


TRANSPOSED = [(2, 2, "same"), (3, 2, "same"), (4, 2, 1), (3, 2, "valid"), ((1, 3), (2, 1), "same")]


@pytest.mark.parametrize(("size", "stride", "padding"), TRANSPOSED)
def test_a_transposed_convolution_is_the_adjoint_of_a_convolution(size, stride, padding):
    kernel = draw(*np.broadcast_to(size, 2), 5, 3)
    inputs = ad.variable("x", (2, 4, 3, 3), "f8"), ad.variable("kernel", kernel.shape, "f8")
    larger = ad.conv2d_transpose(*inputs, stride, padding)
    down, across = np.broadcast_to(stride, 2)
    assert larger.shape == (
        2,
        4 * down + (padding == "valid"),
        3 * across + (padding == "valid"),
        5,
    )
    x, y = draw(*inputs[0].shape), draw(*larger.shape)
    of_y = ad.conv2d(ad.constant(y), inputs[1], stride, padding)
    pair = ad.evaluate([ad.sum(larger * y), ad.sum(of_y * x)], x=x, kernel=kernel)
    np.testing.assert_allclose(*pair, rtol=1e-12)

    def build(x, kernel):
        return ad.tanh(ad.conv2d_transpose(x, kernel, stride, padding) * 0.1)

    check_gradients(build, x, kernel, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("kernel", "padding"), [((2, 2, 5, 4), "same"), ((2, 2, 3), "same"), ((5, 5, 5, 3), 0)]
)
def test_a_transposed_convolution_that_fits_nothing_is_refused(kernel, padding):
    with pytest.raises(ShapeError, match=naming("conv2d_transpose", kernel[0])):
        ad.conv2d_transpose(*variables((1, 4, 4, 3), kernel), 2, padding)


@st.composite
def geometries(draw):
    few, several = st.integers(1, 3), st.integers(1, 7)
    groups = draw(few)
    size = draw(several), draw(several)
    padding = draw(
        st.one_of(
            st.sampled_from(["same", "valid"]),
            st.integers(0, 4),
            st.tuples(*[st.tuples(*[st.integers(0, 4)] * 2)] * 2),
        )
    )
    inside = draw(st.integers(1, 6))
    x = draw(few), draw(st.integers(1, 9)), draw(st.integers(1, 9)), groups * inside
    stride = draw(st.one_of(few, st.tuples(few, few)))
    return x, (*size, inside, groups * draw(few)), stride, padding, groups


@settings(FIXED, max_examples=100)
@given(geometries())
def test_random_geometries(geometry):
    x, kernel, stride, padding, groups = geometry
    try:
        windows(kernel[:2], stride, padding, x[1:3]).output(*x[1:3])
    except ShapeError:
        assume(False)
    agree(draw(*x), draw(*kernel), stride, padding, groups)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_several_threads_find_the_same_and_the_same_bits_each_time(
    threads, stride, groups, monkeypatch
):
    monkeypatch.setattr(training, "STRIP_BYTES", 1)
    monkeypatch.setattr(training, "MIN_PIXELS", 8)
    x, kernel = draw(5, 7, 6, 6), draw(3, 3, 6 // groups, 4)
    seen = windows(3, stride, 1, (7, 6))
    expected = by_windows(x, kernel, seen, groups)
    cotangent = draw(*expected.shape)
    out = [np.empty(shape) for shape in (expected.shape, x.shape, kernel.shape)]
    pool = ThreadPool(threads)
    calls = [
        convolve(seen, groups, x, kernel, out[0], pool).call(pool),
        input_gradient(seen, groups, cotangent, kernel, out[1], pool).call(pool),
        filter_gradient(seen, groups, x, cotangent, out[2], pool),
    ]
    first = []
    for call, result in zip(calls, out, strict=True):
        call()
        first.append(result.copy())
    wanted = expected, *gradients_by_loops(x, kernel, cotangent, seen, groups)
    for value, each in zip(first, wanted, strict=True):
        np.testing.assert_allclose(value, each, rtol=1e-12, atol=1e-12)
    for _ in range(20):
        for call, result, value in zip(calls, out, first, strict=True):
            result.fill(np.nan)
            call()
            np.testing.assert_array_equal(result, value)
    pool.close()


@pytest.mark.parametrize("channels", [1, 3, 16, 20])
@pytest.mark.parametrize("map_size", [(9, 11), (8, 12), (3, 4)])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (3, 1, "same"),
        (3, 1, "valid"),
        (3, 2, 1),
        (5, (1, 2), "same"),
        ((2, 3), 1, ((1, 0), (0, 4))),
    ],
)
def test_a_convolution_in_training_gives_the_same_compiled(
    channels, map_size, size, stride, padding, monkeypatch
):
    """In float32, with numba and without it; the maps are equal for any number of threads."""
    seen = windows(size, stride, padding, map_size)
    random = np.random.default_rng(channels)
    x = random.standard_normal((3, *map_size, channels), np.float32)
    kernel = random.standard_normal((*seen.size, channels, 32), np.float32)
    cotangent = random.standard_normal((3, *seen.output(*map_size), 32), np.float32)

    def computed(threads):
        pool = ThreadPool(threads)
        out = np.empty_like(cotangent), np.empty_like(x), np.empty_like(kernel)
        for each in out:
            each.fill(np.nan)
        convolve(seen, 1, x, kernel, out[0], pool).call(pool)()
        input_gradient(seen, 1, cotangent, kernel, out[1], pool).call(pool)()
        filter_gradient(seen, 1, x, cotangent, out[2], pool)()
        pool.close()
        return out

    fastest, shared = computed(1), computed(2)
    for value, same in zip(fastest[:2], shared, strict=False):
        np.testing.assert_array_equal(value, same)
    monkeypatch.setattr(training, "compiled_loops", lambda _: None)
    for value, plain in zip(fastest, computed(1), strict=True):
        np.testing.assert_allclose(value, plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())


LAYOUTS = {
    "transposed": lambda x: ad.transpose(x, (0, 2, 1, 3)),
    "channels from the front": lambda x: ad.transpose(x, (3, 1, 2, 0)),
    "a part of the channels": lambda x: x[..., 1:6],
    "every other channel, from the last": lambda x: x[..., ::-2],
    "a part of the rows": lambda x: x[:, 2:5],
    "repeated": lambda x: ad.broadcast_to(x[:, :1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_kernels_and_cotangents_may_be_views_whose_contents_change(layout, size, stride):
    x = ad.variable("x", (5, 6, 6, 6), np.float64)
    kernel = ad.variable("kernel", (4, layout(x).shape[3], size, size), np.float64)
    seen_x, seen_kernel = layout(x), ad.transpose(kernel, (2, 3, 1, 0))
    out = ad.conv2d(seen_x, seen_kernel, stride)
    total = ad.sum(ad.mean(out, (1, 2)) * np.arange(4.0))  # its gradient is repeated, too
    plan = ad.compile([out, *ad.gradients(total, [seen_x, seen_kernel])])
    arrays = {"x": np.empty(x.shape), "kernel": np.empty(kernel.shape)}
    bound = plan.bind(arrays)
    seen = windows(size, stride, "same", seen_x.shape[1:3])
    for seed in range(3):
        for array in arrays.values():
            array[...] = np.random.default_rng(seed).standard_normal(array.shape)
        found = bound.run()
        (values,) = ad.evaluate([seen_x], x=arrays["x"])
        turned = arrays["kernel"].transpose(2, 3, 1, 0)
        cotangent = np.broadcast_to(np.arange(4.0) / math.prod(out.shape[1:3]), out.shape)
        wanted = (
            by_windows(values, turned, seen, 1),
            *gradients_by_loops(values, np.ascontiguousarray(turned), cotangent, seen, 1),
        )
        for value, each in zip(found, wanted, strict=True):
            np.testing.assert_allclose(value, each, rtol=1e-12, atol=1e-12)


def test_float32_is_as_exact_as_sums_of_float32_can_be():
    x, kernel = draw(8, 14, 14, 32).astype("f4"), draw(3, 3, 32, 16).astype("f4")
    cotangent = draw(8, 14, 14, 16).astype("f4")
    single = ours(x, kernel, cotangent, 1, "same", 1)
    double = ours(*(each.astype("f8") for each in (x, kernel, cotangent)), 1, "same", 1)
    for value, exact in zip(single, double, strict=True):
        assert value.dtype == np.float32
        assert np.abs(value - exact).max() < 1e-5 * np.abs(exact).max()


def test_a_convolution_of_constants_is_known_when_compiled():
    x, kernel = draw(1, 4, 4, 2), draw(3, 3, 2, 2)
    plan = ad.compile([ad.conv2d(ad.constant(x), ad.constant(kernel))])
    (value,) = plan.bind({}).run()
    seen = windows(3, 1, "same", (4, 4))
    np.testing.assert_allclose(value, by_windows(x, kernel, seen, 1), rtol=1e-12, atol=1e-12)


def test_equal_convolutions_are_computed_once():
    x, kernel = ad.variable("x", (1, 4, 4, 2)), ad.variable("kernel", (3, 3, 2, 2))
    once = ad.compile([ad.conv2d(x, kernel)])
    twice = ad.compile([ad.conv2d(x, kernel) + ad.conv2d(x, kernel, padding=1)])
    arrays = {"x": np.zeros(x.shape, "f4"), "kernel": np.zeros(kernel.shape, "f4")}
    assert len(twice.bind(arrays)) == len(once.bind(arrays)) + 1


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("stride", [1, 2])
def test_without_images_channels_or_filters_all_is_empty_or_zero(empty, stride):
    images, channels, filters = (0 if empty == each else 3 for each in EMPTY)
    x, kernel = draw(images, 4, 5, channels), draw(3, 3, channels, filters)
    out, to_x, to_kernel = ours(x, kernel, np.float64(1), stride, "same", 1)
    assert out.shape == (images, 4 // stride, -(-5 // stride), filters)
    for value, shape in ((out, out.shape), (to_x, x.shape), (to_kernel, kernel.shape)):
        np.testing.assert_array_equal(value, np.zeros(shape), strict=True)


def variables(x, kernel, x_dtype=np.float32, kernel_dtype=np.float32):
    return ad.variable("x", x, x_dtype), ad.variable("kernel", kernel, kernel_dtype)


@pytest.mark.parametrize(
    ("x", "kernel", "groups"),
    [
        ((2, 5, 5, 4), (3, 3, 3, 8), 1),
        ((2, 5, 5, 4), (3, 3, 4, 8), 2),
        ((2, 5, 5, 6), (3, 3, 3, 7), 2),
        ((2, 5, 5, 5), (3, 3, 2, 4), 2),
        ((2, 5, 5, 4), (3, 3, 4, 8), 0),
        ((2, 5, 5, 4), (3, 3, 4, 8), -1),
        ((5, 5, 4), (3, 3, 4, 8), 1),
        ((2, 5, 5, 4), (3, 3, 4), 1),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(x, kernel, groups):
    with pytest.raises(ShapeError) as refusal:
        ad.conv2d(*variables(x, kernel), groups=groups)
    message = str(refusal.value)
    assert message.startswith("conv2d: ")
    assert str(x) in message
    assert str(kernel) in message
    assert "expected" in message


def test_a_kernel_that_fits_nowhere_is_refused():
    with pytest.raises(ShapeError, match=naming((3, 3), (2, 2))):
        ad.conv2d(*variables((1, 2, 2, 1), (3, 3, 1, 1)), padding="valid")


@pytest.mark.parametrize("stride", [0, (1, 0), -1])
def test_a_stride_that_stands_still_is_refused(stride):
    with pytest.raises(ShapeError, match=naming(f"stride {np.min(stride)}", 1)):
        ad.conv2d(*variables((1, 4, 4, 1), (3, 3, 1, 1)), stride=stride)


def test_dtypes_that_differ_or_are_no_floats_are_refused():
    with pytest.raises(DTypeError, match=naming("conv2d", "float32", "float64")):
        ad.conv2d(*variables((1, 4, 4, 1), (3, 3, 1, 1), kernel_dtype=np.float64))
    with pytest.raises(DTypeError, match=naming("conv2d", "int32")):
        ad.conv2d(*variables((1, 4, 4, 1), (3, 3, 1, 1), np.int32, np.int32))


@pytest.mark.parametrize("height", [28, 27, 7])
def test_each_line_is_in_one_strip_of_about_equal_ones_that_fit_the_cache(height):
    x = np.empty((64, height, 28, 16), np.float32)
    everything = training.SeenMap(windows(3, 1, 1, (height, 28)), 1, x, x, ThreadPool())
    seen, lines = np.zeros((64, height), int), []
    for strip in everything.strips():
        seen[strip.images, strip.rows] += 1
        _, (groups, pixels, length) = everything.patches.shapes(strip)
        assert groups * pixels * length * 4 <= training.STRIP_BYTES
        lines.append(pixels // 28)
    assert (seen == 1).all()
    assert max(lines) - min(lines) <= 1
    assert 2 * max(lines) > min(height, training.STRIP_BYTES // (28 * length * 4))
