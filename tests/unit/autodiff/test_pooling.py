"""Pooling, window by window: maxima, means, who has the gradient, and what padding counts for."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.kernels import thread_pool
from dist_net.autodiff.kernels.windows import windows
from dist_net.errors import DTypeError, ShapeError
from naming import naming

FIXED = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
POOLS = {"max": ad.max_pool, "average": ad.average_pool}


def draw(*shape):
    return np.random.default_rng([4, *shape]).standard_normal(shape)


def real_windows(shape, size, stride, padding):
    """For each place of the result, the part of the map that its window has."""
    seen = windows(size, stride, padding, shape[1:3])
    for place in itertools.product(*map(range, seen.output(*shape[1:3]))):
        starts = [
            i * step - before
            for i, step, (before, _) in zip(place, seen.stride, seen.padding, strict=True)
        ]
        yield (
            place,
            tuple(
                slice(max(0, start), max(0, start + n))
                for start, n in zip(starts, seen.size, strict=True)
            ),
        )


def by_loops(name, x, size, stride, padding, cotangent=None):
    """The result, and what flows back from a cotangent."""
    places = dict(real_windows(x.shape, size, stride, padding))
    rows, columns = (1 + max(place[axis] for place in places) for axis in range(2))
    out, to_x = np.empty((len(x), rows, columns, x.shape[3]), x.dtype), np.zeros_like(x)
    for ((i, j), part), n, c in itertools.product(places.items(), range(len(x)), range(x.shape[3])):
        window, target = x[n, :, :, c][part], to_x[n, :, :, c][part]
        assert window.size > 0
        share = 1.0 if cotangent is None else cotangent[n, i, j, c]
        if name == "max":
            out[n, i, j, c] = window.max()
            target[np.unravel_index(window.argmax(), window.shape)] += share
        else:
            out[n, i, j, c] = window.mean()
            target += share / window.size
    return out, to_x


def ours(name, x, size, stride, padding, cotangent):
    node = ad.variable("x", x.shape, x.dtype)
    out = POOLS[name](node, size, stride, padding)
    return ad.evaluate([out, *ad.gradients(ad.sum(out * cotangent), [node])], x=x)


def agree(name, x, size, stride, padding):
    shape = by_loops(name, x, size, stride, padding)[0].shape
    cotangent = draw(*shape).astype(x.dtype)
    found = ours(name, x, size, stride, padding, cotangent)
    for value, wanted in zip(
        found, by_loops(name, x, size, stride, padding, cotangent), strict=True
    ):
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12, strict=True)


# Of the map; size, stride, padding.
GEOMETRIES = {
    "2x2": ((3, 4, 6, 5), 2, 2, "valid"),
    "2x2 of an odd map": ((2, 5, 7, 3), 2, 2, "valid"),
    "2x2 of an odd map, same": ((2, 5, 7, 3), 2, 2, "same"),
    "Darknet's 2x2, stride 1": ((1, 4, 5, 2), 2, 1, ((0, 1), (0, 1))),
    "Darknet's 2x2": ((1, 5, 6, 2), 2, 2, ((0, 1), (0, 1))),
    "ResNet's 3x3": ((1, 7, 6, 3), 3, 2, 1),
    "3x3, same": ((1, 5, 5, 2), 3, 1, "same"),
    "3x3 one after the other": ((2, 6, 9, 2), 3, 3, "valid"),
    "gaps": ((1, 8, 7, 2), 2, 3, "valid"),
    "gaps and padding": ((1, 8, 7, 2), (2, 1), (3, 2), ((1, 1), (0, 0))),
    "a row": ((2, 5, 6, 2), (1, 2), (1, 2), "valid"),
    "a column": ((2, 6, 5, 2), (2, 1), (2, 1), "valid"),
    "unequal everything": ((1, 9, 7, 2), (4, 3), (3, 1), ((2, 3), (0, 1))),
    "larger than the map": ((2, 2, 3, 2), 5, 2, "same"),
    "the whole map": ((2, 3, 4, 2), (3, 4), 1, "valid"),
    "one pixel": ((2, 1, 1, 3), 3, 1, 1),
    "nothing to do": ((2, 3, 4, 2), 1, 1, "valid"),
    "every other pixel": ((2, 3, 4, 2), 1, 2, "valid"),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("name", POOLS)
def test_values_and_gradients_are_those_of_loops(name, geometry, monkeypatch):
    shape, *how = geometry
    agree(name, draw(*shape), *how)
    monkeypatch.setattr(thread_pool, "STRIP_BYTES", 1)  # one image at a time
    agree(name, draw(*shape), *how)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("name", POOLS)
def test_first_and_second_derivatives_agree_with_differences(name, geometry):
    shape, *how = geometry

    def build(x):
        return ad.tanh(POOLS[name](ad.square(x), *how))

    check_gradients(build, draw(*shape), rng=np.random.default_rng(0))


@st.composite
def geometries(draw):
    side, several = st.integers(1, 8), st.integers(1, 4)
    padding = draw(
        st.one_of(
            st.sampled_from(["same", "valid"]),
            st.integers(0, 3),
            st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * 2),
        )
    )
    shape = draw(st.integers(1, 3)), draw(side), draw(side), draw(st.integers(1, 3))
    return shape, (draw(several), draw(several)), (draw(several), draw(several)), padding


def has_only_padding(shape, *how):
    places = list(real_windows(shape, *how))
    return any(draw(*shape)[0, :, :, 0][part].size == 0 for _, part in places)


@settings(FIXED, max_examples=150)
@given(geometries(), st.sampled_from(list(POOLS)), st.integers(0, 100))
def test_random_geometries_with_many_ties(geometry, name, seed):
    shape, *how = geometry
    x = np.random.default_rng(seed).integers(-2, 2, shape).astype(np.float64)
    try:
        refused = has_only_padding(shape, *how)
    except ShapeError:
        assume(False)
    if refused:
        with pytest.raises(ShapeError, match="padding"):
            POOLS[name](ad.variable("x", shape), *how)
    else:
        agree(name, x, *how)


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 1), (3, 3)])
def test_at_a_tie_the_first_of_the_window_row_by_row_has_the_gradient(size, stride):
    x = np.zeros((1, size, size, 2))
    x[0, 0, 1, 0] = x[0, 1, 0, 0] = 1  # the first in the upper row, though in a later column
    _, gradient = ours("max", x, size, stride, "valid", np.float64(1))
    expected = np.zeros_like(x)
    expected[0, 0, 1, 0] = expected[0, 0, 0, 1] = 1
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("how", [(2, 2, "valid"), (3, 1, "same"), (3, 2, 1)])
def test_second_derivatives_go_through_the_winners_of_ties(how):
    """Half the sum of squared maxima has J^T J as its second derivative, J picking the winners."""
    x = np.random.default_rng(0).integers(0, 2, (2, 6, 6, 2)).astype(np.float64)
    direction = draw(*x.shape)
    node = ad.variable("x", x.shape, x.dtype)
    (first,) = ad.gradients(ad.sum(ad.square(ad.max_pool(node, *how))) * 0.5, [node])
    (second,) = ad.evaluate(ad.gradients(ad.sum(first * direction), [node]), x=x)
    shape = by_loops("max", x, *how)[0].shape
    picked = np.empty(shape)
    for place in np.ndindex(shape):
        only = np.zeros(shape)
        only[place] = 1
        picked[place] = (by_loops("max", x, *how, only)[1] * direction).sum()
    np.testing.assert_allclose(second, by_loops("max", x, *how, picked)[1], atol=1e-12)


def test_padding_never_wins_and_does_not_count():
    x = np.full((1, 3, 3, 1), -5.0)
    for name in POOLS:
        out, _ = ours(name, x, 3, 1, "same", np.float64(1))
        np.testing.assert_allclose(out, x, rtol=1e-15)


def test_infinities_and_nan_come_through():
    x = np.zeros((1, 2, 6, 1), np.float32)
    x[0, :, :, 0] = [[-np.inf, -np.inf, np.inf, 0, np.nan, 0], [-np.inf, -np.inf, 1, 0, 0, 1]]
    (value,) = ad.evaluate([ad.max_pool(ad.variable("x", x.shape), 2)], x=x)
    np.testing.assert_array_equal(value[0, 0, :, 0], np.array([-np.inf, np.inf, np.nan], "f4"))


@pytest.mark.parametrize("name", POOLS)
def test_the_stride_is_the_size_if_left_out(name):
    x = ad.variable("x", (2, 6, 9, 4))
    assert POOLS[name](x, (2, 3)).shape == (2, 3, 3, 4)


@pytest.mark.parametrize("name", POOLS)
def test_maps_and_cotangents_may_be_views_whose_contents_change(name):
    x = ad.variable("x", (5, 6, 4, 3), np.float64)
    seen = ad.transpose(x, (3, 2, 1, 0))
    out = POOLS[name](seen, 2)
    plan = ad.compile([out, *ad.gradients(ad.sum(ad.mean(out, (1, 2))), [seen])])
    values = np.empty(x.shape)
    bound = plan.bind({"x": values})
    for seed in range(3):
        values[...] = np.random.default_rng(seed).standard_normal(values.shape)
        cotangent = np.full(out.shape, 1 / 6)
        turned = np.ascontiguousarray(values.T)
        wanted = by_loops(name, turned, 2, 2, "valid", cotangent)
        for value, each in zip(bound.run(), wanted, strict=True):
            np.testing.assert_allclose(value, each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 4, 4, 0)])
def test_without_images_or_channels_there_is_nothing(name, shape):
    out, gradient = ours(name, np.zeros(shape), 2, 2, "valid", np.float64(1))
    assert out.shape == (shape[0], 2, 2, shape[3])
    assert gradient.shape == shape


@pytest.mark.parametrize("name", POOLS)
def test_what_is_no_map_or_no_float_is_refused(name):
    with pytest.raises(ShapeError, match=naming(f"{name}_pool", "(N, H, W, C)", (4, 4, 1))):
        POOLS[name](ad.variable("x", (4, 4, 1)), 2)
    with pytest.raises(DTypeError, match=naming(f"{name}_pool", "uint8")):
        POOLS[name](ad.variable("x", (1, 4, 4, 1), np.uint8), 2)


@pytest.mark.parametrize("name", POOLS)
def test_windows_that_do_not_fit_or_see_only_padding_are_refused(name):
    with pytest.raises(ShapeError, match=naming((5, 5), (4, 4))):
        POOLS[name](ad.variable("x", (1, 4, 4, 1)), 5)
    with pytest.raises(ShapeError, match=naming("((2, 0), (0, 0))", (4, 4))):
        POOLS[name](ad.variable("x", (1, 4, 4, 1)), 2, 1, ((2, 0), (0, 0)))
    with pytest.raises(ShapeError, match="padding"):
        POOLS[name](ad.variable("x", (1, 4, 4, 1)), 2, 1, ((0, 0), (0, 2)))
