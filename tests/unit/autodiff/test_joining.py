"""Arrays end to end: values, derivatives, and what is refused."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.errors import DTypeError, ShapeError
from naming import naming


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


def test_one_array_may_be_joined_with_itself_and_with_what_is_made_of_it():
    holds(
        lambda x: ad.concatenate([x, x[:, 1:3], x * x], 1),
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
    first, second = ad.evaluate([joined[:, :3], joined[:, 3:]], **arrays)
    np.testing.assert_array_equal(first, arrays["x"])
    np.testing.assert_array_equal(second, arrays["y"])


def test_one_alone_and_what_is_empty_need_no_copy():
    x, empty = ad.variable("x", (2, 3)), ad.variable("empty", (2, 0))
    assert ad.concatenate([x], 1) is x
    assert ad.concatenate([empty, x, empty], 1) is x
    assert ad.concatenate([empty, empty], 1) is empty


def test_what_does_not_fit_is_refused_with_all_shapes():
    x, y = ad.variable("x", (2, 3)), ad.variable("y", (3, 3))
    with pytest.raises(ShapeError, match=naming((2, 3), (3, 3))):
        ad.concatenate([x, y], 1)
    with pytest.raises(ShapeError, match=naming((2, 3), (3,))):
        ad.concatenate([x, ad.variable("y", (3,))])
    with pytest.raises(ShapeError, match=naming((2, 3), (3, 0))):
        ad.concatenate([x, ad.variable("y", (3, 0))], 1)
    with pytest.raises(ShapeError, match=naming("concatenate")):
        ad.concatenate([])
    with pytest.raises(DTypeError, match=naming("concatenate", "float32", "float64")):
        ad.concatenate([x, ad.variable("y", (2, 3), np.float64)])


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_is_not_there_is_refused(axis):
    x = ad.variable("x", (2, 3))
    with pytest.raises(ShapeError, match=naming("concatenate", axis, (2, 3))):
        ad.concatenate([x, x], axis)
