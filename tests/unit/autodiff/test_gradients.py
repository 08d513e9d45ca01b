"""What gradients are where calculus alone does not say: ties, casts, names, missing paths."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.operations.indexing import AddAt, Take
from dist_net.errors import GradientError


def gradient_of(output, name, **arrays):
    x = ad.variable(name, arrays[name].shape, arrays[name].dtype)
    return ad.evaluate(ad.gradients(output(x), [x]), **arrays)[0]


def test_elements_that_tie_share_the_gradient_of_max():
    x = np.array([[1.0, 3, 3, 0], [2, 2, 2, 2]])
    gradient = gradient_of(lambda x: ad.sum(ad.max(x, 1)), "x", x=x)
    np.testing.assert_array_equal(gradient, [[0, 0.5, 0.5, 0], [0.25] * 4])


@pytest.mark.parametrize("function", [ad.maximum, ad.minimum])
def test_at_a_tie_the_gradient_is_the_second_inputs(function):
    x = ad.variable("x", (2,), np.float64)
    y = ad.variable("y", (2,), np.float64)
    first, second = ad.evaluate(
        ad.gradients(ad.sum(function(x, y)), [x, y]), x=np.zeros(2), y=np.zeros(2)
    )
    np.testing.assert_array_equal(first, [0, 0])
    np.testing.assert_array_equal(second, [1, 1])
    np.testing.assert_array_equal(
        gradient_of(lambda x: ad.sum(ad.maximum(x, 0.0)), "x", x=np.zeros(2)), [0, 0]
    )


def test_a_maximum_of_an_expression_and_itself_has_its_gradient_once():
    for function in (ad.maximum, ad.minimum):
        gradient = gradient_of(lambda x, f=function: ad.sum(f(x, x)), "x", x=np.array([-1.0, 0, 2]))
        np.testing.assert_array_equal(gradient, [1, 1, 1])


@pytest.mark.parametrize("swapped", [False, True])
def test_both_sides_of_a_maximum_with_a_multiple_of_itself_have_their_gradients(swapped):
    x, slope = ad.variable("x", (3,), np.float64), ad.constant(0.1, np.float64)
    scaled = x * slope
    output = ad.sum((ad.maximum(scaled, x) if swapped else ad.maximum(x, scaled)) * 2.0)
    at = np.array([-3.0, 1, 2])
    by_x, by_scaled, by_slope = ad.evaluate(ad.gradients(output, [x, scaled, slope]), x=at)
    np.testing.assert_array_equal(by_x, [0.2, 2, 2])
    np.testing.assert_array_equal(by_scaled, [2, 0, 0])
    assert by_slope == -6


LEAKY = {
    "as one operation": ad.leaky_relu,
    "as a maximum": lambda x, slope: ad.maximum(x, x * slope),
    "with the slope first": lambda x, slope: ad.maximum(x, slope * x),
}


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.75])
@pytest.mark.parametrize("form", LEAKY.values(), ids=LEAKY)
def test_a_leaky_relu_lets_back_all_or_its_slope(slope, form):
    x = np.array([-2.0, -0.0, 0.0, 1e-300, 3.0])

    def leaky(x):
        return form(x, slope)

    gradient = gradient_of(lambda x: ad.sum(leaky(x) * 2.0), "x", x=x)
    np.testing.assert_allclose(gradient, [2 * slope] * 3 + [2, 2], rtol=1e-15)
    random = np.random.default_rng(0)
    check_gradients(lambda x: ad.square(leaky(x)) * x, random.standard_normal((5, 4)), rng=random)


@pytest.mark.parametrize("slope", [-0.5, 1.0, 2.0])
def test_another_slope_is_that_of_any_maximum(slope):
    x = np.array([-2.0, 3.0])
    gradient = gradient_of(lambda x: ad.sum(ad.maximum(x, x * slope)), "x", x=x)
    np.testing.assert_allclose(gradient, np.where(x > x * slope, 1, slope))


def test_a_leaky_relu_of_what_is_large_transposed_or_inside_a_strip():
    random = np.random.default_rng(0)
    for shape in ((300, 301), (3, 4)):
        x, w = ad.variable("x", shape, np.float64), ad.variable("w", shape[::-1], np.float64)
        leaky = ad.maximum(ad.transpose(x), ad.transpose(x) * 0.25)
        turned = ad.transpose(x)
        outputs = [
            *ad.gradients(ad.sum(leaky * w), [x]),
            *ad.gradients(ad.sum(ad.square(ad.maximum(turned, turned * 0.25)) * w), [x]),
            *ad.gradients(ad.sum(ad.transpose(ad.maximum(x, x * 0.25)) * w), [x]),
        ]
        arrays = {"x": random.standard_normal(shape), "w": random.standard_normal(shape[::-1])}
        factor = np.where(arrays["x"] > 0, 1, 0.25)
        plain, squared, transposed = ad.evaluate(outputs, **arrays)
        np.testing.assert_allclose(plain, arrays["w"].T * factor)
        np.testing.assert_allclose(transposed, plain)
        np.testing.assert_allclose(squared, 2 * arrays["x"] * factor**2 * arrays["w"].T)


def test_elements_are_taken_and_added_back():
    places, random = ad.constant(np.array([3, 0, 3])), np.random.default_rng(0)
    at = random.standard_normal((4, 4, 4))
    for axis in range(3):
        added = AddAt((4, 4, 4), axis)
        taken = at.take([0, 1, 2], axis)
        check_gradients(lambda x, a=axis: ad.exp(ad.apply(Take(a), x, places)), at, rng=random)
        check_gradients(lambda x, a=added: ad.exp(ad.apply(a, x, places)), taken, rng=random)


class Wrong(ad.Operation):
    """The input itself, with a VJP that returns what it is made with."""

    def __init__(self, *flowing):
        self.flowing = flowing

    def result(self, *inputs):
        return inputs[0].shape, inputs[0].dtype

    def vjp(self, node, cotangent):
        return self.flowing


@pytest.mark.parametrize(
    ("flowing", "found"),
    [
        ([ad.variable("g", (1,), np.float64)], r"float64\[1\].*input 0.*float64\[2\]"),
        ([ad.variable("g", (), np.float64)], r"float64\[\].*input 0"),
        ([ad.variable("g", (2,))], r"float32\[2\].*input 0"),
        ([np.ones(2)], "ndarray.*input 0"),
        ([None, None], "2 cotangents.*1 inputs"),
        ([], "0 cotangents.*1 inputs"),
    ],
)
def test_a_vjp_of_another_shape_is_refused_with_the_operations_name(flowing, found):
    x = ad.variable("x", (2,), np.float64)
    output = ad.sum(ad.apply(Wrong(*flowing), x * 2.0))
    with pytest.raises(GradientError, match=f"^Wrong: .*{found}"):
        ad.gradients(output, [x])


def test_casts_carry_gradients_between_floats():
    x = np.array([0.1, 1e-300, 1e300])

    def output(x):
        return ad.sum(ad.astype(ad.astype(x, np.float32) * 3.0, np.float64))

    gradient = gradient_of(output, "x", x=x)
    np.testing.assert_array_equal(gradient, [3, 3, 3])
    assert gradient.dtype == np.float64
    gradient = gradient_of(lambda x: ad.sum(ad.astype(x, np.float64)), "x", x=x[:2].astype("f4"))
    assert gradient.dtype == np.float32


def test_no_gradient_flows_through_integers():
    x = np.array([1.5, 2.5])
    gradient = gradient_of(
        lambda x: ad.sum(ad.astype(ad.astype(x, np.intp), np.float64) * x), "x", x=x
    )
    np.testing.assert_array_equal(gradient, [1, 2])


def test_labels_as_uint8_are_compared_and_counted():
    labels = ad.variable("labels", (3,), np.uint8)
    hits = ad.equal(ad.astype(labels, np.intp), ad.argmax(ad.variable("x", (3, 300)), 1))
    x = np.zeros((3, 300), np.float32)
    x[[0, 1, 2], [255, 7, 299]] = 1
    (count,) = ad.evaluate(
        [ad.sum(ad.astype(hits, np.float32))], x=x, labels=np.array([255, 7, 43], np.uint8)
    )
    assert count == 2  # 43 is 299 modulo 256


def test_stop_gradient_holds_its_argument_constant():
    holds_first = gradient_of(
        lambda x: ad.sum(ad.stop_gradient(ad.square(x)) * x), "x", x=np.array([1.0, 3.0])
    )
    np.testing.assert_array_equal(holds_first, [1, 9])


def test_one_node_used_often_collects_every_gradient():
    at = np.array([0.5, 1.0, 2.0])
    check_gradients(
        lambda x: (x * x + x / (x + 3.0)) @ (x * ad.sum(x)), at, rng=np.random.default_rng(0)
    )


def test_a_variable_without_influence_has_a_gradient_of_zeros():
    x = ad.variable("x", (2,), np.float64)
    unused = ad.variable("unused", (3, 1))
    hidden = ad.variable("hidden", (2,), np.float64)
    output = ad.sum(x * ad.stop_gradient(hidden)) + ad.sum(ad.astype(hidden > 0, np.float64))
    values = ad.evaluate(
        ad.gradients(output, [unused, hidden]),
        **{"unused": np.ones((3, 1), np.float32), "hidden": np.ones(2)},
    )
    np.testing.assert_array_equal(values[0], np.zeros((3, 1), np.float32), strict=True)
    np.testing.assert_array_equal(values[1], np.zeros(2), strict=True)


def test_gradients_by_inner_expressions_and_by_the_output():
    x = ad.variable("x", (2,), np.float64)
    inner = ad.square(x)
    output = ad.sum(inner * inner)
    by_inner, by_output = ad.evaluate(ad.gradients(output, [inner, output]), x=np.array([1.0, 2.0]))
    np.testing.assert_array_equal(by_inner, [2, 8])
    assert by_output == 1


def test_variables_of_one_name_share_one_gradient():
    def x():
        return ad.variable("x", (2,), np.float64)

    (gradient,) = ad.evaluate(
        ad.gradients(ad.sum(x() * x() + 3.0 * x()), [x()]), x=np.array([1.0, 2.0])
    )
    np.testing.assert_array_equal(gradient, [5, 7])
