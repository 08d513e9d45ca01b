"""Slices, and zeros around one: values, derivatives, memory, and what is refused."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.expression import topological_order
from dist_net.errors import DistNetError, IndexRangeError, ShapeError
from naming import naming

X = ad.variable("x", (4, 5, 6), np.float64)
INDICES = [
    *(np.s_[0], np.s_[-1], np.s_[1, 2], np.s_[1, -2, 3], np.s_[()], np.s_[...]),
    *(np.s_[1:3], np.s_[:, 2:], np.s_[..., -1], np.s_[1, ..., 2:4], np.s_[..., :, 2, :]),
    *(np.s_[::2], np.s_[:, ::-1], np.s_[::-3, 3:1:-1, ::5], np.s_[-100:100, 100:-100:-2]),
    *(np.s_[None], np.s_[:, None, 2, ..., None], np.s_[1, 2, 3, None], np.s_[None, ..., ::2]),
    *(np.s_[3:1], np.s_[:, -100::-1], np.s_[0, 5:], np.s_[::-1, 2:2:-1]),
    *(np.int64(2), (np.uint8(1), slice(np.int8(1), None))),
]


def draw(*shape):
    return np.random.default_rng([9, *shape]).standard_normal(shape)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_slice_is_numpys_and_so_are_its_first_and_second_derivatives(index):
    x = draw(4, 5, 6)
    (value,) = ad.evaluate([X[index]], x=x)
    assert value.shape == X[index].shape
    np.testing.assert_array_equal(value, x[index], strict=True)
    check_gradients(lambda x: ad.tanh(x[index]), x, rng=np.random.default_rng(0))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_zeros_around_are_an_assignment_to_zeros(index):
    x = draw(*X[index].shape)
    expected = np.zeros((4, 5, 6))
    expected[index] = x
    around = ad.zeros_around(ad.variable("x", x.shape, np.float64), (4, 5, 6), index)
    (value,) = ad.evaluate([around], x=x)
    np.testing.assert_array_equal(value, expected, strict=True)
    check_gradients(
        lambda x: ad.tanh(ad.zeros_around(x, (4, 5, 6), index)), x, rng=np.random.default_rng(0)
    )


def test_equal_slices_are_one_however_they_are_written():
    same = [X[1:, ::2], X[1:4, 0:5:2], X[-3:, -5::2, :], X[1:100, :5:2, ...]]
    assert len({each.operation for each in same}) == 1
    assert all(X[every] is X for every in (np.s_[...], np.s_[:], np.s_[:, 0:5], np.s_[::1, :9]))


def test_a_new_axis_alone_is_a_reshape_which_keeps_what_is_contiguous():
    assert X[:, None, ..., None].operation == ad.reshape(X, (4, 1, 5, 6, 1)).operation


def test_a_slice_needs_no_computation_and_no_memory():
    x = ad.variable("x", (100, 64))
    plan = ad.compile([ad.sum(x[::-2, 3:40], 1)])
    assert plan.buffer_bytes == 0
    assert len(plan.bind({"x": np.zeros((100, 64), np.float32)})) == 1


@pytest.mark.parametrize("index", [np.s_[1:3], np.s_[:, 1:3], np.s_[::-2], np.s_[:, 2]], ids=str)
def test_a_slice_is_reshaped_and_given_out_as_an_array_of_its_own(index):
    x, values = ad.variable("x", (4, 4)), draw(4, 4).astype("f4")
    outputs = [x[index], ad.reshape(x[index], (-1,))]
    as_it_is, flat = ad.compile(outputs).bind({"x": values}).run()
    np.testing.assert_array_equal(as_it_is, values[index], strict=True)
    np.testing.assert_array_equal(flat, values[index].reshape(-1), strict=True)
    assert not np.shares_memory(as_it_is, values)


def test_a_slice_outlives_the_result_that_it_is_of():
    """Nothing is written over a buffer while a slice of it is still to be read."""
    computed = ad.exp(ad.variable("x", (4, 6)))
    result = ad.concatenate([ad.square(ad.negative(computed)), computed[:, :3] * 2.0], 1)
    values = draw(4, 6).astype("f4")
    (found,) = ad.evaluate([result], x=values)
    expected = np.concatenate([np.exp(values) ** 2, np.exp(values)[:, :3] * 2], 1)
    np.testing.assert_array_equal(found, expected)


def test_reversed_in_its_place_is_still_reversed():
    (value,) = ad.evaluate(
        [ad.zeros_around(ad.variable("x", (3,)), (3,), np.s_[::-1])], x=np.arange(3, dtype="f4")
    )
    np.testing.assert_array_equal(value, [2, 1, 0])


@pytest.mark.parametrize("index", [4, -5, np.s_[:, 5], np.s_[..., 2, 6], np.s_[0, 0, -7]], ids=str)
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexRangeError, match=r"index -?\d.*axis \d.*\(4, 5, 6\)"):
        X[index]


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (np.s_[0, 0, 0, 0], r"4 indices.*\(4, 5, 6\).*3"),
        (np.s_[0, ..., 0, ...], r"\(4, 5, 6\).*\.\.\..*2"),
        (True, "bool"),
        (1.0, "float"),
        (np.s_[::0], r"slice\(None, None, 0\).*axis 0"),
        (np.s_[1.5:], r"slice\(1.5, None, None\).*axis 0"),
    ],
    ids=str,
)
def test_what_is_no_index_of_the_expression_is_refused(index, told):
    with pytest.raises(ShapeError, match=told):
        X[index]


def test_zeros_are_refused_around_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"zeros_around: .*\(3,\).*\(2,\)"):
        ad.zeros_around(ad.variable("x", (3,)), (5,), np.s_[:2])
    with pytest.raises(DistNetError, match=naming("zeros_around", 5)):
        ad.zeros_around(ad.variable("x", (3,)), 5, np.s_[:2])


@pytest.mark.parametrize(
    "use", [list, lambda x: [*x], lambda x: 1.0 in x], ids=["list", "unpacked", "in"]
)
def test_an_expression_is_not_iterated_over(use):
    with pytest.raises(TypeError, match=naming("Expression")):
        use(X)


def sum_of_slices(x, count):
    terms = [ad.square(x[i]) * float(i + 1) for i in range(count)]
    return sum((ad.sum(each) for each in terms[1:]), ad.sum(terms[0]))


@pytest.mark.parametrize("count", [2, 50])
def test_the_gradient_of_many_slices_is_one_array_that_is_filled_once(count):
    x = ad.variable("x", (count, 6))
    (gradient,) = ad.gradients(sum_of_slices(x, count), [x])
    whole = [node for node in topological_order([gradient]) if node.shape == x.shape]
    assert len(whole) == 2  # the variable itself, and its gradient
    values = draw(count, 6).astype(np.float32)
    (found,) = ad.evaluate([gradient], x=values)
    np.testing.assert_allclose(found, 2 * values * np.arange(1, count + 1)[:, None], rtol=1e-6)


def test_slices_that_overlap_and_other_uses_add_up():
    def function(x):
        return ad.tanh(x[1:]) * x[:-1] + x[::3][0] * ad.sum(x) + ad.exp(x)[1:]

    check_gradients(function, draw(6, 4), rng=np.random.default_rng(0))
