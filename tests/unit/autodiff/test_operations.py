"""Every operation: its values against NumPy's, its derivatives against differences of values."""

import itertools
import math

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.operations.classification import scores_of_labels
from dist_net.errors import IndexRangeError
from naming import naming


def draw(*shape):
    return np.random.default_rng([7, *shape]).standard_normal(shape)


def positive(*shape):
    return 0.5 + np.abs(draw(*shape))


def holds(build, reference, *at):
    """``build`` gives what ``reference`` gives at this point, and so do its derivatives."""
    inputs = [ad.variable(f"x{i}", array.shape, array.dtype) for i, array in enumerate(at)]
    arrays = {f"x{i}": array for i, array in enumerate(at)}
    (value,) = ad.evaluate([build(*inputs)], **arrays)
    np.testing.assert_allclose(value, reference(*at), rtol=1e-13, atol=1e-13, strict=True)
    check_gradients(build, *at, rng=np.random.default_rng(0))


erf = np.vectorize(math.erf, otypes=[float])


def gelu_by_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


UNARY = {
    "negative": (ad.negative, np.negative, draw),
    "exp": (ad.exp, np.exp, draw),
    "log": (ad.log, np.log, positive),
    "sqrt": (ad.sqrt, np.sqrt, positive),
    "square": (ad.square, np.square, draw),
    "expm1": (ad.expm1, np.expm1, draw),
    "tanh": (ad.tanh, np.tanh, draw),
    "sigmoid": (ad.sigmoid, lambda x: 1 / (1 + np.exp(-x)), draw),
    "leaky relu of slope 0": (lambda x: ad.leaky_relu(x, 0.0), lambda x: np.maximum(x, 0), draw),
    "clip": (lambda x: ad.clip(x, -0.5, 1.0), lambda x: np.clip(x, -0.5, 1), draw),
    "relu": (lambda x: ad.maximum(x, 0.0), lambda x: np.maximum(x, 0), draw),
    "absolute": (abs, np.absolute, draw),
    "sign": (lambda x: x * ad.sign(x), np.absolute, draw),
    "sin": (ad.sin, np.sin, draw),
    "cos": (ad.cos, np.cos, draw),
    "log1p": (ad.log1p, np.log1p, positive),
    "erf": (ad.erf, erf, draw),
    "softplus": (ad.softplus, lambda x: np.logaddexp(x, 0), draw),
    "silu": (ad.silu, lambda x: x / (1 + np.exp(-x)), draw),
    "gelu": (ad.gelu, lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, draw),
    "gelu by tanh": (lambda x: ad.gelu(x, approximate=True), gelu_by_tanh, draw),
    "x ** 2": (lambda x: x**2, np.square, draw),
    "cube": (lambda x: x**3, lambda x: x**3, draw),
    "a power of 2": (lambda x: 2.0**x, np.exp2, draw),
    "a sum of powers": (lambda x: 1 / x - 2 / (x * x), lambda x: 1 / x - 2 / x**2, positive),
}

BINARY = {
    "add": (ad.add, np.add),
    "subtract": (ad.subtract, np.subtract),
    "multiply": (ad.multiply, np.multiply),
    "divide": (ad.divide, np.divide),
    "maximum": (ad.maximum, np.maximum),
    "minimum": (ad.minimum, np.minimum),
    "power": (lambda x, y: y**x, lambda x, y: y**x),
    "where 0": (lambda x, y: ad.where(y > 1.0, x, 0.0), lambda x, y: np.where(y > 1, x, 0)),
    "where": (
        lambda x, y: ad.where(x > y, ad.square(x), x * y),
        lambda x, y: np.where(x > y, x**2, x * y),
    ),
    "where a number": (
        lambda x, y: ad.where(x > y, 3.0, y),
        lambda x, y: np.where(x > y, 3, y),
    ),
}

BROADCASTS = [
    ((2, 3), (2, 3)),
    ((2, 3), (3,)),
    ((2, 1), (3,)),
    ((1, 3), (2, 1)),
    ((), (2, 3)),
    ((1, 1), ()),
    ((4, 1, 3), (2, 1)),
    ((0, 3), (3,)),
    ((2, 1), (0,)),
]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_input(name, shape):
    build, reference, point = UNARY[name]
    holds(build, reference, point(*shape))


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_inputs_broadcast(name, shapes):
    build, reference = BINARY[name]
    first, second = shapes
    holds(build, reference, draw(*first), positive(*second))
    holds(build, reference, draw(*second), positive(*first))


@pytest.mark.parametrize(
    ("build", "reference"),
    [
        (ad.less, np.less),
        (ad.less_equal, np.less_equal),
        (ad.greater, np.greater),
        (ad.greater_equal, np.greater_equal),
        (ad.equal, np.equal),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.intp])
def test_comparisons(build, reference, dtype):
    x = np.array([[0], [1], [2]], dtype)
    y = np.array([0, 1, 2, 3], dtype)
    (value,) = ad.evaluate(
        [build(ad.variable("x", (3, 1), dtype), ad.variable("y", (4,), dtype))], x=x, y=y
    )
    np.testing.assert_array_equal(value, reference(x, y), strict=True)


REDUCED = [
    ((2, 3, 4), None),
    ((2, 3, 4), 0),
    ((2, 3, 4), (0, 1)),
    ((2, 3, 4), -1),
    ((2, 3, 4), (2, 0)),
    ((2, 3, 4), (-2,)),
    ((2, 3, 4), ()),
    ((), None),
    ((1, 3, 1), (0, 2)),
    ((1,), 0),
    ((3, 0), 0),
    ((0, 1), 1),
]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("shape", "axes"), REDUCED, ids=str)
@pytest.mark.parametrize(
    ("build", "reference"),
    [(ad.sum, np.sum), (ad.mean, np.mean), (ad.max, np.max), (ad.min, np.min)],
)
def test_reductions(build, reference, shape, axes, keep):
    holds(
        lambda x: build(ad.square(x), axes, keep),
        lambda x: reference(x**2, axis=axes, keepdims=keep),
        draw(*shape),
    )


@pytest.mark.parametrize("axes", [None, 0, -1, (0, 1)], ids=str)
def test_a_sum_over_no_elements_is_zero(axes):
    holds(lambda x: ad.sum(x, axes), lambda x: np.sum(x, axis=axes), np.empty((0, 3)))


def test_reductions_read_views_that_are_not_contiguous():
    for axes in (0, 1, (0, 2), None):
        holds(
            lambda x, axes=axes: ad.sum(ad.transpose(x, (2, 0, 1)), axes) * 2.0,
            lambda x, axes=axes: np.sum(x.transpose(2, 0, 1), axis=axes) * 2,
            draw(2, 3, 4),
        )
        holds(
            lambda x, axes=axes: ad.sum(ad.broadcast_to(x, (4, 3, 2)), axes),
            lambda x, axes=axes: np.sum(np.broadcast_to(x, (4, 3, 2)), axis=axes),
            draw(3, 1),
        )


@pytest.mark.parametrize(
    ("shape", "target"),
    [((), (2, 3)), ((3,), (2, 3)), ((1, 3, 1), (2, 2, 3, 4)), ((1,), (0,)), ((2, 1), (3, 2, 4))],
    ids=str,
)
def test_broadcast_to(shape, target):
    holds(
        lambda x: ad.square(ad.broadcast_to(x, target)),
        lambda x: np.broadcast_to(x, target) ** 2,
        draw(*shape),
    )


def test_transposes_in_every_order():
    for axes in itertools.permutations(range(4)):
        holds(
            lambda x, axes=axes: ad.transpose(x, axes),
            lambda x, axes=axes: x.transpose(axes),
            draw(2, 1, 3, 4),
        )


@pytest.mark.parametrize(
    ("shape", "axes", "target"),
    [
        ((2, 3), (1, 0), (6,)),
        ((2, 3, 4), (2, 0, 1), (-1, 2)),
        ((1, 5), (1, 0), (1, 5)),
        ((2, 0), (1, 0), (0, 7)),
        ((), (), (1, 1)),
    ],
    ids=str,
)
def test_reshapes_of_transposes(shape, axes, target):
    holds(
        lambda x: ad.square(ad.reshape(ad.transpose(x, axes), target)),
        lambda x: x.transpose(axes).reshape(target) ** 2,
        draw(*shape),
    )


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (3, 4)),
        ((2, 3), (3,)),
        ((3,), (3, 2)),
        ((3,), (3,)),
        ((2, 1), (1, 4)),  # an outer product
        ((1,), (1,)),
        ((1, 1), (1, 1)),
        ((5, 2, 3), (5, 3, 4)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((6, 1, 2, 3), (5, 3, 1)),
        ((1, 2, 1), (5, 1, 3)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 2)),
        ((2, 0), (0, 3)),
        ((0, 2), (2, 3)),
        ((0,), (0,)),
        ((0, 2, 3), (3, 1)),
    ],
    ids=str,
)
def test_matrix_products(shapes):
    first, second = (draw(*shape) for shape in shapes)
    holds(ad.matmul, np.matmul, first, second)


def test_products_of_transposes():
    holds(
        lambda a, b: ad.transpose(a) @ ad.transpose(b, (0, 2, 1)),
        lambda a, b: a.T @ b.transpose(0, 2, 1),
        draw(3, 2),
        draw(4, 5, 3),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_pick(dtype):
    labels = np.array([2, 0, 2, 1], dtype)
    rows = np.arange(4)
    holds(lambda x: x[rows, ad.constant(labels)], lambda x: x[rows, labels], draw(4, 3))
    holds(
        lambda x: ad.square(x.T[rows, labels]),
        lambda x: x.T[rows, labels] ** 2,
        draw(3, 4),
    )
    holds(
        lambda x: ad.broadcast_to(x, (4, 3))[rows, labels],
        lambda x: np.broadcast_to(x, (4, 3))[rows, labels],
        draw(3),
    )


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32])
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_maxima_and_minima_of_every_dtype(name, dtype):
    x = np.array([0, 3, 9], dtype)
    (found,) = ad.evaluate([getattr(ad, name)(ad.variable("x", (3,), dtype), 5)], x=x)
    np.testing.assert_array_equal(found, getattr(np, name)(x, dtype(5)), strict=True)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_a_maximum_or_minimum_with_nan_is_nan(name):
    for pair in ([np.nan, 1.0], [1.0, np.nan]):
        (found,) = ad.evaluate([getattr(ad, name)(*map(ad.constant, pair))])
        assert np.isnan(found)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("wrong", [3, 4, 100, -1, -3, -100])
def test_pick_never_reads_another_row(dtype, wrong):
    if wrong < 0 and np.dtype(dtype).kind == "u":
        wrong = np.iinfo(dtype).max
    labels = np.array([2, 0, 1, 1], dtype)
    x, variable = draw(4, 3), ad.variable("labels", (4,), dtype)
    picked = scores_of_labels("a loss", ad.variable("x", (4, 3), np.float64), variable)
    bound = ad.compile([picked]).bind({"x": x, "labels": labels})
    bound.run()
    labels[2] = wrong
    with pytest.raises(IndexRangeError, match=naming(wrong, "position 2", "0 to 2")):
        bound.run()
    labels[2] = 2
    np.testing.assert_array_equal(bound.run()[0], x[range(4), labels])


def test_pick_of_no_rows():
    labels = ad.constant(np.empty(0, np.uint8))
    holds(lambda x: scores_of_labels("a loss", x, labels), lambda x: x[:, 0], np.empty((0, 3)))


def test_pick_follows_labels_that_change_between_runs():
    x, labels = np.arange(6.0).reshape(2, 3), np.array([0, 2], np.uint8)
    bound = ad.compile(
        [ad.variable("x", (2, 3), np.float64)[[0, 1], ad.variable("labels", (2,), np.uint8)]]
    ).bind({"x": x, "labels": labels})
    np.testing.assert_array_equal(bound.run()[0], [0, 5])
    labels[:] = [1, 0]
    np.testing.assert_array_equal(bound.run()[0], [1, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_argmax_and_argmin_are_the_first_of_those_that_tie(name, dtype):
    array = np.array([[1, 3, 3], [2, 1, 1]], dtype)
    x = ad.variable("x", (2, 3), dtype)
    for view, same in ((x, array), (x.T, array.T)):
        for axis in (None, 0, 1, -1):
            (index,) = ad.evaluate([getattr(view, name)(axis)], x=array)
            np.testing.assert_array_equal(index, getattr(same, name)(axis))


def test_erf_of_float32_is_nearly_exact():
    x = np.linspace(-6, 6, 20001).astype(np.float32)
    (value,) = ad.evaluate([ad.erf(ad.variable("x", x.shape))], x=x)
    np.testing.assert_allclose(value, erf(x.astype(float)), rtol=7e-7, atol=0)
    assert np.abs(value - erf(x.astype(float))).max() < 1.4e-7
    x = np.array([-np.inf, -1e30, -0.0, 1e-38, 100, np.inf, np.nan], np.float32)
    (value,) = ad.evaluate([ad.erf(ad.variable("x", x.shape))], x=x)
    np.testing.assert_allclose(value, erf(x), rtol=1e-6)


def test_derivatives_at_kinks_and_far_away_are_finite():
    x = np.array([-1e3, -100, 0, 100, 1e3])
    for function, slopes in (
        (ad.softplus, [0, 0, 0.5, 1, 1]),
        (ad.silu, [0, 0, 0.5, 1, 1]),
        (ad.gelu, [0, 0, 0.5, 1, 1]),
        (abs, [-1, -1, 0, 1, 1]),
        (lambda x: x**2, 2 * x),
        (lambda x: x**0, [0] * 5),
    ):
        place = ad.variable("x", x.shape, x.dtype)
        (found,) = ad.evaluate(ad.gradients(function(place).sum(), [place]), x=x)
        np.testing.assert_allclose(found, slopes, rtol=1e-15, atol=1e-40)


INDICES = {
    "vector": np.s_[[2, 0, 2]],
    "matrix": np.s_[np.array([[1, 0], [-1, 1]])],
    "last axis": np.s_[..., np.array([3, 3, 0])],
    "middle axis": np.s_[:, [[1], [2]]],
    "pair": np.s_[[0, 2, 2], [1, 1, -3]],
    "pair that broadcasts": np.s_[[[0], [2]], [1, 0]],
    "apart": np.s_[[0, 2], :, [1, 3]],
    "integer apart": np.s_[1, :, [1, 3]],
    "integer beside": np.s_[:, 0, [1, 3]],
    "all axes": np.s_[[0, 1], [1, 0], [3, 2]],
    "slices": np.s_[1:, ::-2, [0, 1, 1]],
    "new axes": np.s_[None, [0, 1], None, 1:],
    "apart by a new axis": np.s_[[0, 1], None, [1, 2]],
    "none": np.s_[:, np.empty((2, 0), np.int8)],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_arrays_of_integers_as_indices(index):
    holds(lambda x: ad.square(x[index]), lambda x: x[index] ** 2, draw(3, 3, 4))
    swapped = np.s_[(index if isinstance(index, tuple) else (index,))]
    holds(lambda x: x.T.T[swapped], lambda x: x[swapped], draw(3, 3, 4))


def test_take_and_indices_that_are_expressions():
    rows = ad.constant(np.array([2, 0], np.uint8))
    holds(lambda x: x[rows], lambda x: x[[2, 0]], draw(3, 4))
    for axis in (None, 0, -1):
        holds(lambda x, a=axis: x.take([2, 0], a), lambda x, a=axis: x.take([2, 0], a), draw(3, 4))
    order = ad.argmax(ad.variable("x", (3, 4), np.float64), 0)
    values = draw(3, 4)
    (found,) = ad.evaluate([ad.variable("x", (3, 4), np.float64)[order, range(4)]], x=values)
    np.testing.assert_array_equal(found, values.max(0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_an_index_out_of_range_is_refused_when_the_plan_runs(dtype):
    index = ad.variable("index", (3,), dtype)
    bound = ad.compile([ad.variable("x", (4, 2))[index]])
    for wrong in (4, 200) if dtype is np.uint8 else (4, -5):
        arrays = {"x": np.zeros((4, 2), np.float32), "index": np.array([0, wrong, 1], dtype)}
        with pytest.raises(IndexRangeError, match=naming("index", wrong, "position 1", "to 3")):
            bound.bind(arrays).run()


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_cumulative_sums(axis):
    holds(lambda x: ad.square(x.cumsum(axis)), lambda x: x.cumsum(axis) ** 2, draw(3, 4))


def test_arrays_are_stacked_split_and_padded():
    for axis in (0, 1, -1):
        holds(
            lambda x, y, a=axis: ad.stack([x, y, x], a),
            lambda x, y, a=axis: np.stack([x, y, x], a),
            draw(2, 3),
            draw(2, 3) + 1,
        )
        for parts in (2, [1, 3], [0, 2, 2]):
            holds(
                lambda x, a=axis, p=parts: ad.split(x, p, a)[1] ** 2,
                lambda x, a=axis, p=parts: np.split(x, p, a)[1] ** 2,
                draw(4, 6),
            )
    for width in (1, (2, 0), ((0, 1), (2, 0))):
        holds(lambda x, w=width: ad.pad(x, w), lambda x, w=width: np.pad(x, w), draw(2, 3))


EINSUMS = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "ij,jk": ((2, 3), (3, 4)),
    "nqhd,nkhd->nhqk": ((2, 3, 2, 4), (2, 5, 2, 4)),
    "nhqk,nkhd->nqhd": ((2, 2, 3, 5), (2, 5, 2, 4)),
    "i,i->": ((3,), (3,)),
    "i,j->ji": ((3,), (2,)),
    "ij,ij->i": ((2, 3), (2, 3)),
    "ijk,jl->k": ((2, 3, 4), (3, 5)),
    "ijk->kj": ((2, 3, 4),),
    "ab,bc,cd->ad": ((2, 3), (3, 4), (4, 2)),
    "ab,cd,bc->ad": ((2, 3), (4, 2), (3, 4)),
    "...ij,...jk->...ik": ((3, 1, 4, 5), (2, 5, 2)),
    "...ij,jk": ((2, 3, 4), (4, 2)),
    "i...,...->...i": ((3, 2, 1), (4,)),
    "...i->i...": ((2, 3, 4),),
    "...,...": ((3, 1), (1, 4)),
    "b...i,b...i->b...": ((2, 3, 4), (2, 1, 4)),
    "ij->...ij": ((2, 3),),
}


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum(subscripts):
    holds(
        lambda *x: ad.einsum(subscripts, *x),
        lambda *x: np.einsum(subscripts, *x),
        *(draw(*shape) for shape in EINSUMS[subscripts]),
    )


def test_einsum_sums_over_the_dots_that_its_output_lacks():
    holds(lambda x: ad.einsum("...i->i", x), lambda x: x.sum((0, 1)), draw(2, 3, 4))


MASK = np.array([[True, False, True], [False, True, True]])
MASKS = {
    "all axes": MASK,
    "first axis": MASK[0, :2],
    "a list": [False, True],
    "last axis": np.s_[..., np.array([True, False, True, True])],
    "with an integer": np.s_[MASK, 1],
    "with an array": np.s_[[0, 1, 0], [0, 1, 2], np.array([True, False, True, True])],
    "with a new axis": np.s_[None, MASK],
    "nothing": np.zeros((2, 3), bool),
}


@pytest.mark.parametrize("index", MASKS.values(), ids=MASKS)
def test_masks_of_numpy_as_indices(index):
    holds(lambda x: ad.square(x[index]), lambda x: x[index] ** 2, draw(2, 3, 4))


def test_masks_are_combined_and_select_by_where():
    holds(
        lambda x: ad.where(((x > 0.0) & (x < 1.0)) | ~(x > -1.0), x * x, 0.0),
        lambda x: np.where(((x > 0) & (x < 1)) | ~(x > -1), x * x, 0),
        draw(5, 6),
    )


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)], ids=str)
def test_a_masked_mean_counts_what_the_mask_shows(axis):
    mask = np.array([[True, False, False], [True, True, False]])
    counts = np.maximum(mask.sum(axis), 1)
    holds(
        lambda x: ad.masked_mean(ad.square(x), ad.constant(mask), axis),
        lambda x: (x**2 * mask).sum(axis) / counts,
        draw(2, 3),
    )
    x = np.array([[1.0, np.nan], [3.0, 4.0]])
    shown = np.array([[True], [False]])
    (found,) = ad.evaluate([ad.masked_mean(ad.constant(x), ad.constant(shown), 0)])
    np.testing.assert_array_equal(found, x[0])


@pytest.mark.parametrize("shape", [(7,), (3, 1), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("axis", [0, -1])
def test_elements_in_order_and_the_largest(shape, axis):
    holds(lambda x: ad.square(ad.sort(x, axis)), lambda x: np.sort(x, axis) ** 2, draw(*shape))
    holds(
        lambda x: ad.sort(x, axis, descending=True) ** 3,
        lambda x: np.flip(np.sort(x, axis), axis) ** 3,
        draw(*shape),
    )
    k = min(2, shape[axis])
    holds(
        lambda x: ad.square(ad.top_k(x, k, axis)[0]),
        lambda x: np.flip(np.sort(x, axis), axis).take(range(k), axis) ** 2,
        draw(*shape),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.bool_])
def test_equal_elements_keep_their_order_and_nan_is_the_largest(dtype):
    array = np.array([[1, 0, 1, 0], [0, 0, 1, 1]], dtype)
    x = ad.variable("x", array.shape, dtype)
    up, down, (values, indices) = ad.argsort(x), ad.argsort(x, descending=True), ad.top_k(x, 3)
    found = ad.evaluate([up, down, values, indices], x=array)
    for ours, wanted in zip(
        found,
        [
            [[1, 3, 0, 2], [0, 1, 2, 3]],
            [[0, 2, 1, 3], [2, 3, 0, 1]],
            np.array([[1, 1, 0], [1, 1, 0]], dtype),
            [[0, 2, 1], [2, 3, 0]],
        ],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, wanted)
    x = ad.constant(np.array([1.0, np.nan, 2.0]))
    found = ad.evaluate([ad.argsort(x), ad.argsort(x, descending=True)])
    np.testing.assert_array_equal(found, [[0, 2, 1], [1, 2, 0]])


def test_elements_along_an_axis_at_indices():
    indices = np.array([[2, 0], [1, 1]])
    holds(
        lambda x: ad.take_along_axis(x, ad.constant(indices), 1) ** 2,
        lambda x: np.take_along_axis(x, indices, 1) ** 2,
        draw(2, 3),
    )


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("shape", "axes"), [each for each in REDUCED if 0 not in each[0]], ids=str)
def test_products_variances_and_deviations(shape, axes, keep):
    holds(
        lambda x: ad.prod(x, axes, keep),
        lambda x: np.prod(x, axis=axes, keepdims=keep),
        draw(*shape),
    )
    holds(
        lambda x: ad.var(x, axes, keep),
        lambda x: np.var(x, axis=axes, keepdims=keep),
        draw(*shape),
    )


def test_a_variance_may_divide_by_less_than_the_number_of_elements():
    holds(lambda x: ad.var(x, 1, ddof=1), lambda x: np.var(x, axis=1, ddof=1), draw(3, 4))
    holds(lambda x: ad.std(x, (0, 1)), lambda x: np.std(x, axis=(0, 1)), draw(3, 4))


@pytest.mark.parametrize("ddof", [0, 1])
def test_equal_elements_have_a_deviation_of_zero_without_a_slope(ddof):
    x = np.array([[3.0, 3, 3], [1, 2, 4]])
    place = ad.variable("x", x.shape, x.dtype)
    deviation = ad.std(place, 1, ddof=ddof)
    found, slopes = ad.evaluate([deviation, *ad.gradients(ad.sum(deviation), [place])], x=x)
    np.testing.assert_allclose(found, x.std(1, ddof=ddof))
    exact = (x[1] - x[1].mean()) / (3 - ddof) / found[1]
    np.testing.assert_allclose(slopes, [[0, 0, 0], exact], atol=1e-15)


def test_a_product_has_slopes_where_elements_are_zero():
    for zeros in ([1], [1, 3], [0, 2, 4]):
        x = draw(5)
        x[zeros] = 0
        place = ad.variable("x", (5,), np.float64)
        product = ad.prod(place)
        found, slopes = ad.evaluate([product, *ad.gradients(product, [place])], x=x)
        assert found == 0
        others = [np.prod(np.delete(x, i)) for i in range(5)]
        np.testing.assert_allclose(slopes, others, rtol=1e-14)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)], ids=str)
def test_a_product_of_no_elements_is_one(shape):
    holds(lambda x: ad.prod(x, 0), lambda x: np.prod(x, axis=0), np.empty(shape))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


LABELS = np.array([1, 0, 2, 2], np.uint8)


def test_softmax_and_its_kin():
    for shape in ((4, 3), (3,), (2, 4, 3), (4, 1), (0, 3)):
        holds(ad.softmax, lambda x: softmax(x) if x.size else x, draw(*shape))
        holds(ad.log_softmax, lambda x: np.log(softmax(x)) if x.size else x, draw(*shape))
    holds(
        lambda x: ad.cross_entropy_of_logits(x, ad.constant(LABELS)),
        lambda x: -np.log(softmax(x))[np.arange(4), LABELS],
        draw(4, 3),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_and_its_kin_are_exact_for_huge_logits(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 0], [0, 1e4, 1]], dtype)
    x = ad.variable("x", (4, 3), dtype)
    losses = ad.cross_entropy_of_logits(x, ad.constant(LABELS))
    (gradient,) = ad.gradients(ad.sum(losses), [x])
    probabilities, logarithms, loss, slope = ad.evaluate(
        [ad.softmax(x), ad.log_softmax(x), losses, gradient], x=logits
    )
    half, third, log_2, log_3 = 1 / 2, 1 / 3, np.log(2), np.log(3)
    expected = [[1, 0, 0], [third] * 3, [half, half, 0], [0, 1, 0]]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    np.testing.assert_allclose(
        logarithms,
        [[0, -2e4, -1e4], [-log_3] * 3, [-log_2, -log_2, -1e4 - log_2], [-1e4, 0, -9999]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(loss, [2e4, log_3, 1e4 + log_2, 9999], rtol=1e-6)
    np.testing.assert_allclose(slope, np.array(expected) - np.eye(3)[LABELS], rtol=1e-6, atol=1e-7)


def test_uniform_numbers_are_drawn_anew_at_each_run_from_the_generator():
    first = ad.uniform((100,), np.random.default_rng(3))
    second = ad.uniform((100,), np.random.default_rng(3))
    bound = ad.compile([first, second, first + 0.0]).bind({})
    runs = [[array.copy() for array in bound.run()] for _ in range(2)]
    expected = np.random.default_rng(3).random((2, 100), np.float32)
    for i, run in enumerate(runs):
        for array in run:
            np.testing.assert_array_equal(array, expected[i])
