"""Arrays end to end, and parts of one: values, derivatives, memory, and what is refused."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.errors import DTypeError, ShapeError


def draw(*shape):
    return np.random.default_rng([9, *shape]).standard_normal(shape)


def holds(build, reference, *at):
    """``build`` gives what ``reference`` gives at this point, and so do its derivatives."""
    inputs = [ad.variable(f"x{i}", array.shape, array.dtype) for i, array in enumerate(at)]
    arrays = {f"x{i}": array for i, array in enumerate(at)}
    (value,) = ad.evaluate([build(*inputs)], **arrays)
    np.testing.assert_array_equal(value, reference(*at), strict=True)
    check_gradients(lambda *x: ad.tanh(build(*x)), *at, rng=np.random.default_rng(0))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
def test_concatenate_is_numpys(axis):
    shapes = [[2, 3, 4, 5] for _ in range(3)]
    for shape, length in zip(shapes, (2, 1, 3), strict=True):
        shape[axis] = length
    holds(
        lambda *x: ad.concatenate(x, axis),
        lambda *x: np.concatenate(x, axis),
        *(draw(*shape) for shape in shapes),
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (2, 4), (0, 4), (2, 2)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_part_is_a_slice(start, stop, axis):
    def sliced(x):
        return np.take(x, range(start, stop), axis)

    holds(lambda x: ad.part(x, axis, start, stop), sliced, draw(4, 4, 4))


def test_one_array_may_be_joined_with_itself_and_with_what_is_made_of_it():
    holds(
        lambda x: ad.concatenate([x, ad.part(x, 1, 1, 3), x * x], 1),
        lambda x: np.concatenate([x, x[:, 1:3], x * x], 1),
        draw(3, 4),
    )


def test_parts_and_views_are_joined():
    holds(
        lambda x, y: ad.concatenate([ad.transpose(x), ad.broadcast_to(y, (4, 2))], 1),
        lambda x, y: np.concatenate([x.T, np.broadcast_to(y, (4, 2))], 1),
        draw(3, 4),
        draw(2),
    )


def test_what_was_joined_comes_apart_again():
    x, y = ad.variable("x", (2, 3)), ad.variable("y", (2, 5))
    joined = ad.concatenate([x, y], 1)
    arrays = {"x": draw(2, 3).astype("f4"), "y": draw(2, 5).astype("f4")}
    first, second = ad.evaluate([ad.part(joined, 1, 0, 3), ad.part(joined, 1, 3, 8)], **arrays)
    np.testing.assert_array_equal(first, arrays["x"])
    np.testing.assert_array_equal(second, arrays["y"])


def test_a_part_needs_no_computation_and_no_memory():
    x = ad.variable("x", (100, 64))
    plan = ad.compile([ad.sum(ad.part(x, 1, 3, 40), 1)])
    assert plan.buffer_bytes == 0
    assert len(plan.bind({"x": np.zeros((100, 64), np.float32)})) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_a_part_is_reshaped_and_given_out_as_an_array_of_its_own(axis):
    x = ad.variable("x", (4, 4))
    piece = ad.part(x, axis, 1, 3)
    values = draw(4, 4).astype("f4")
    expected = np.take(values, [1, 2], axis)
    as_it_is, flat = ad.compile([piece, ad.reshape(piece, (8,))]).bind({"x": values}).run()
    np.testing.assert_array_equal(as_it_is, expected, strict=True)
    np.testing.assert_array_equal(flat, expected.reshape(8), strict=True)
    assert not np.shares_memory(as_it_is, values)


def test_a_part_outlives_the_result_that_it_is_of():
    """Nothing is written over a buffer while a part of it is still to be read."""
    x = ad.variable("x", (4, 6))
    computed = ad.exp(x)
    piece = ad.part(computed, 1, 0, 3)
    whole = ad.negative(computed)
    result = ad.concatenate([ad.square(whole), piece * 2.0], 1)
    values = draw(4, 6).astype("f4")
    (found,) = ad.evaluate([result], x=values)
    expected = np.concatenate([np.exp(values) ** 2, np.exp(values)[:, :3] * 2], 1)
    np.testing.assert_array_equal(found, expected)


def test_one_alone_and_what_is_empty_need_no_copy():
    x, empty = ad.variable("x", (2, 3)), ad.variable("empty", (2, 0))
    assert ad.concatenate([x], 1) is x
    assert ad.concatenate([empty, x, empty], 1) is x
    assert ad.concatenate([empty, empty], 1) is empty
    assert ad.part(x, 1, 0, 3) is x


def test_what_does_not_fit_is_refused_with_all_shapes():
    x, y = ad.variable("x", (2, 3)), ad.variable("y", (3, 3))
    with pytest.raises(
        ShapeError, match=r"shapes \(2, 3\) and \(3, 3\); expected equal lengths on"
    ):
        ad.concatenate([x, y], 1)
    with pytest.raises(ShapeError, match=r"shapes \(2, 3\) and \(3,\); expected as many axes"):
        ad.concatenate([x, ad.variable("y", (3,))])
    with pytest.raises(ShapeError, match=r"shapes \(2, 3\) and \(3, 0\); expected equal lengths"):
        ad.concatenate([x, ad.variable("y", (3, 0))], 1)
    with pytest.raises(ShapeError, match="no expressions"):
        ad.concatenate([])
    with pytest.raises(DTypeError, match="concatenate: dtypes float32 and float64 differ"):
        ad.concatenate([x, ad.variable("y", (2, 3), np.float64)])


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_is_not_there_is_refused(axis):
    x = ad.variable("x", (2, 3))
    with pytest.raises(ShapeError, match=rf"concatenate: axis {axis} of shape \(2, 3\)"):
        ad.concatenate([x, x], axis)
    with pytest.raises(ShapeError, match=rf"part: axis {axis} of shape \(2, 3\)"):
        ad.part(x, axis, 0, 1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (2, 1), (4, 4)])
def test_a_part_that_is_not_there_is_refused(start, stop):
    with pytest.raises(
        ShapeError, match=rf"part: {start} to {stop} along axis 1 of shape \(2, 3\)"
    ):
        ad.part(ad.variable("x", (2, 3)), 1, start, stop)
