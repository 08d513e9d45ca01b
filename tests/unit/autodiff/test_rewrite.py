"""Each rewrite rule fires, leaves less to compute, and preserves the value."""

from functools import partial

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.compiler import rewrite
from dist_net.autodiff.compiler.specialise import specialise
from dist_net.autodiff.compiler.steps import is_computed
from dist_net.autodiff.expression import Operation, apply, topological_order
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.errors import GraphError

X = ad.variable("x", (3, 4), np.float64)
Y = ad.variable("y", (3, 4), np.float64)
ROW = ad.variable("row", (4,), np.float64)
SCALAR = ad.variable("scalar", (), np.float64)
TRUTH = ad.variable("truth", (4,), np.bool_)
NUMBERS = ad.constant(np.arange(4.0))
ZEROS = ad.broadcast_to(ad.constant(0.0, np.float64), (3, 4))


def arrays():
    random = np.random.default_rng(0)
    return {
        "x": random.standard_normal((3, 4)),
        "y": random.standard_normal((3, 4)),
        "row": random.standard_normal(4),
        "scalar": np.array(1.5),
        "truth": np.array([True, False, True, True]),
    }


def repeated(x, *shape):
    return ad.broadcast_to(x, shape)


def scaled_and_shifted(x):
    return ad.apply(ScaleAndShift(), ROW, x, ROW)


def flat(x):
    return ad.reshape(x, (12,))


CASES = [
    # rule, expression, kernel calls that remain
    ("merge_views", ad.exp(ad.stop_gradient(X)), 1),
    ("merge_views", ad.exp(ad.reshape(ad.reshape(X, (12,)), (2, 6))), 1),
    ("merge_views", ad.exp(ad.reshape(ad.reshape(X, (12,)), (3, 4))), 1),
    ("merge_views", ad.exp(ad.transpose(ad.transpose(X))), 1),
    ("merge_views", ad.square(ad.reshape(ad.transpose(ad.transpose(X)), (12,))), 1),
    ("merge_views", ad.sum(repeated(repeated(ROW, 3, 4), 2, 3, 4), (0, 1)), 1),
    ("merge_views", ad.sum(ad.reshape(repeated(SCALAR, 3, 4), (12,)), 0), 1),
    ("merge_views", ad.sum(repeated(ad.reshape(SCALAR, (1, 1)), 3, 4), 0), 1),
    ("fold_constants", X + ad.exp(ad.sum(ad.square(NUMBERS), 0)) / 3.0, 1),
    ("fold_constants", X + ad.reshape(ad.transpose(ad.reshape(NUMBERS, (2, 2))), (4,)), 1),
    ("compute_before_broadcasting", ad.sum(ad.exp(repeated(ROW, 3, 4)), 0), 2),
    ("compute_before_broadcasting", ad.sum(ad.where(TRUTH, repeated(SCALAR, 3, 4), 0.0), 0), 2),
    ("compute_before_broadcasting", ad.sum(ad.astype(repeated(ROW, 3, 4), "f4"), 0), 2),
    ("compute_before_broadcasting", X * repeated(SCALAR, 3, 4), 1),
    ("drop_neutral_operand", ad.exp(X + 0.0), 1),
    ("drop_neutral_operand", ad.exp(0.0 + X), 1),
    ("drop_neutral_operand", ad.exp(X - 0.0), 1),
    ("drop_neutral_operand", ad.exp(X * 1.0), 1),
    ("drop_neutral_operand", ad.exp(1.0 * X), 1),
    ("drop_neutral_operand", ad.exp(X / 1.0), 1),
    ("drop_neutral_operand", ad.exp(X + ZEROS), 1),
    ("merge_scales_and_shifts", scaled_and_shifted(X) + scaled_and_shifted(Y), 2),
    ("merge_scales_and_shifts", scaled_and_shifted(X) + ROW, 2),
    ("merge_scales_and_shifts", ad.reshape(ROW, (1, 4)) + scaled_and_shifted(X), 2),
    ("rectify_while_scaling", ad.relu(scaled_and_shifted(X)), 1),
    ("rectify_while_scaling", ad.relu(X + scaled_and_shifted(Y)), 1),
    ("rectify_while_scaling", ad.relu(flat(scaled_and_shifted(Y)) + flat(X)), 1),
    (
        "rectify_while_scaling",
        ad.relu(flat(scaled_and_shifted(X)) + flat(scaled_and_shifted(Y))),
        2,
    ),
    ("recognise_mask", ad.where(TRUTH, X, 0.0), 1),
]


def work(expression):
    """The nodes that are left, and the elements to compute for them."""
    nodes = topological_order(rewrite.rewrite([expression]))
    return len(nodes) + sum(node.size for node in nodes if is_computed(node))


@pytest.mark.parametrize(("rule", "expression", "kernels"), CASES)
def test_rule(rule, expression, kernels, monkeypatch):
    bound = ad.compile([expression]).bind(arrays())
    assert len(bound) == kernels
    (value,) = bound.run()
    left = work(expression)
    rules = rewrite.RULES
    monkeypatch.setattr(rewrite, "RULES", [each for each in rules if each.__name__ != rule])
    assert work(expression) > left
    monkeypatch.setattr(rewrite, "RULES", [])
    (unchanged,) = ad.evaluate([expression], **arrays())
    np.testing.assert_allclose(value, unchanged, rtol=1e-14, strict=True)


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == {rule.__name__ for rule in rewrite.RULES}


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4), (1, 3, 4), (2, 1, 4), (1, 1, 1), ()])
@pytest.mark.parametrize("operation", [ad.add, ad.subtract, ad.multiply, ad.divide])
def test_a_rule_keeps_the_shape_of_a_broadcast(operation, shape):
    constants = [ad.constant(np.full(shape, value)) for value in (0.0, 1.0, 3.0)]
    for other in (*constants, ad.variable("other", shape, np.float64)):
        for x in (
            X,
            X * 2.0,
            scaled_and_shifted(X),
            scaled_and_shifted(X) + ROW,
            repeated(ROW, 3, 4),
        ):
            for expression in (operation(x, other), operation(other, x)):
                (rewritten,) = rewrite.rewrite([expression])
                assert rewritten.shape == expression.shape
                (found,) = ad.evaluate([expression], **arrays(), other=np.full(shape, 3.0))
                assert found.shape == expression.shape


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (ad.transpose(ad.variable("x", (2, 2))), [[1, 3], [2, 4]]),  # square, and no identity
        (ad.variable("x", (2, 2)) - 1.0, [[0, 1], [2, 3]]),
        (1.0 / ad.variable("x", (2, 2)), [[1, 0.5], [np.float32(1 / 3), 0.25]]),
        (0.0 - ad.variable("x", (2, 2)), [[-1, -2], [-3, -4]]),
    ],
)
def test_what_only_looks_like_a_case_is_left(expression, expected):
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_array_equal(ad.evaluate([expression], x=x)[0], expected)


class Noise(Operation):
    """As many numbers as the input has, other ones at each run."""

    generator = np.random.default_rng(0)

    def result(self, *inputs):
        return inputs[0].shape, inputs[0].dtype

    def bind(self, inputs, out):
        return partial(self.generator.random, None, out.dtype, out)


def test_what_is_random_is_computed_at_each_run_whatever_its_inputs_are():
    bound = ad.compile([apply(Noise(), ad.constant(np.zeros(3)))]).bind({})
    assert not np.array_equal(bound.run()[0].copy(), bound.run()[0])

    noise = apply(Noise(), ad.variable("weight", (3,)))
    graph = specialise([ad.variable("x", (3,)) + noise], ["weight"], ThreadPool())
    prepared = topological_order(graph.prepared.values())
    assert not any(isinstance(node.operation, Noise) for node in prepared)


def kernels_of(*outputs):
    return len(ad.compile(outputs).bind(arrays()))


def test_equal_computations_are_done_once():
    def exponential():
        return ad.exp(ad.variable("x", (3, 4), np.float64) + 2.0)

    assert kernels_of(exponential() * exponential()) == 3
    assert kernels_of(ad.sum(exponential(), 0) + ad.sum(exponential(), 0)) == 4


def test_equal_computations_are_done_once_where_a_rule_made_them():
    assert kernels_of(ad.exp(repeated(ROW, 3, 4)) @ ROW, ad.square(ad.exp(ROW))) == 3
    assert kernels_of(X + ad.exp(NUMBERS), ad.square(X + ad.exp(NUMBERS))) == 2


def test_different_computations_are_not_shared():
    assert kernels_of(ad.sum(X, 0), ad.sum(X, 0, keepdims=True), ad.sum(X, 1), ad.max(X, 0)) == 4
    assert kernels_of(ad.exp(X), ad.exp(Y), ad.log(X)) == 3
    random = np.random.default_rng(0)
    assert kernels_of(ad.uniform((3,), random), ad.uniform((3,), random)) == 2


def test_two_reshapes_of_one_transpose_share_its_copy():
    flipped = ad.transpose(X)
    assert kernels_of(ad.exp(ad.reshape(flipped, (12,))), ad.exp(ad.reshape(flipped, (6, 2)))) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [((4,), np.float64, r"float64\[4\]"), ((3, 4), np.float32, r"float32\[3, 4\]")],
)
def test_variables_of_one_name_must_agree(shape, dtype, told):
    other = ad.variable("x", shape, dtype)
    with pytest.raises(GraphError, match=rf"'x'.* float64\[3, 4\].* {told}"):
        ad.compile([ad.sum(X), ad.sum(other)])
    with pytest.raises(GraphError, match=rf"{told}.* float64\[3, 4\]"):
        ad.gradients(ad.sum(X), [other])


def test_the_gradient_of_a_square_is_one_pass_after_rewriting():
    (gradient,) = ad.gradients(ad.sum(ad.square(X)), [X])
    bound = ad.compile([gradient]).bind(arrays())
    assert len(bound) == 1
    np.testing.assert_array_equal(bound.run()[0], 2 * arrays()["x"])
