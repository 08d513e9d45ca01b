"""The gradient checker finds wrong VJPs, of values and of VJPs, and passes right ones."""

from dataclasses import dataclass

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.operations.elementwise import Elementwise, Unary
from dist_net.errors import DTypeError, GradientError
from naming import naming


@dataclass(frozen=True)
class Cube(Elementwise):
    """x * x * x, with a derivative of ``factor`` * x * x, which should be 3."""

    factor: float

    def bind(self, inputs, out):
        return lambda: np.power(inputs[0], 3, out)

    def derivatives(self, y, g, *x):
        return (g * self.factor * ad.square(x[0]),)


# The square with a VJP of the right value that does not depend on x for calculus.
detached_square = Unary(np.square, lambda _, g, x: (g * 2.0 * ad.stop_gradient(x),))


def point(*shape):
    return np.random.default_rng(1).standard_normal(shape)


def test_a_right_vjp_passes():
    check_gradients(
        lambda x, y: ad.apply(Cube(3.0), x) * y, point(3, 4), point(4), rng=np.random.default_rng(0)
    )


def test_a_wrong_vjp_is_found_and_its_input_named():
    def build(x, y):
        return x + ad.apply(Cube(3.001), y)

    with pytest.raises(GradientError, match=naming("derivative 1", "input 1")):
        check_gradients(build, point(3, 4), point(4), rng=np.random.default_rng(0))


def test_a_vjp_that_cannot_be_differentiated_is_found_at_the_second_order():
    def build(x):
        return detached_square(x)

    check_gradients(build, point(3), rng=np.random.default_rng(0), orders=1)
    with pytest.raises(GradientError, match=naming("derivative 2", "input 0")):
        check_gradients(build, point(3), rng=np.random.default_rng(0))


def test_only_float64_is_checked():
    with pytest.raises(DTypeError, match="float32"):
        check_gradients(ad.exp, point(3).astype(np.float32), rng=np.random.default_rng(0))
    with pytest.raises(DTypeError, match="bool"):
        check_gradients(lambda x: x > 0, point(3), rng=np.random.default_rng(0))


def test_the_point_is_left_as_it_was():
    at = point(3, 4)
    check_gradients(ad.exp, at, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(at, point(3, 4))
