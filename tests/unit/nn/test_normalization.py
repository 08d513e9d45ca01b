"""Batch normalisation against its definition, PyTorch, and the slopes of its values."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff.check import check_gradients
from dist_net.autodiff.compiler.rewrite import rewrite
from dist_net.autodiff.expression import topological_order
from dist_net.autodiff.kernels import thread_pool
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations import normalization, reduction
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.errors import DTypeError, ParameterError, ShapeError
from naming import naming

MODES = [
    (1e-3, "variance", lambda v: np.sqrt(v + 1e-3)),
    (1e-3, "deviation", lambda v: np.sqrt(v) + 1e-3),
    (10.0, "deviation", lambda v: np.sqrt(v) + 10),
]
# Rows one by one, and side by side; channels that are wide apart from each other.
SHAPES = [(6, 3), (4, 3, 5, 2), (32, 28, 28, 16), (67, 7, 7, 33)]


def draw(shape, seed=1):
    random = np.random.default_rng([seed, *shape])
    channels = shape[-1]
    spread, center = np.exp(random.standard_normal(channels)), random.standard_normal(channels)
    return random.standard_normal(shape) * spread + center


def root(variance):
    return ad.sqrt(variance + 1e-3)


def trained(layer, x, weights):
    """The layer's output in training, and what it observed, for float32 ``x`` and weights."""
    scope = nn.Scope(training=True)
    output = layer(ad.variable("x", x.shape), scope)
    return ad.evaluate([output, *scope.observed.values()], x=x, **weights)


def weights_of(channels, seed=2):
    random = np.random.default_rng(seed)
    return {
        "gamma": random.standard_normal(channels).astype(np.float32),
        "beta": random.standard_normal(channels).astype(np.float32),
        "mean": random.standard_normal(channels).astype(np.float32),
        "variance": random.random(channels).astype(np.float32) + 0.1,
    }


@pytest.mark.parametrize(("epsilon", "epsilon_on", "deviation"), MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_training_normalizes_by_the_batch(shape, epsilon, epsilon_on, deviation):
    x, weights = draw(shape).astype(np.float32), weights_of(shape[-1])
    layer = nn.BatchNorm(epsilon=epsilon, epsilon_on=epsilon_on)
    output, mean, variance = trained(layer, x, weights)
    exact = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(mean, exact.mean(axes), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var(axes), rtol=1e-5)
    normal = (exact - exact.mean(axes)) / deviation(exact.var(axes))
    expected = normal * weights["gamma"] + weights["beta"]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("epsilon", "epsilon_on", "deviation"), MODES)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_inference_normalizes_by_the_buffers(shape, epsilon, epsilon_on, deviation):
    x, weights = draw(shape).astype(np.float32), weights_of(shape[-1])
    layer = nn.BatchNorm(epsilon=epsilon, epsilon_on=epsilon_on, activation=nn.leaky_relu)
    scope = nn.Scope()
    (output,) = ad.evaluate([layer(ad.variable("x", shape), scope)], x=x, **weights)
    normal = (x - weights["mean"]) / deviation(weights["variance"])
    expected = normal * weights["gamma"] + weights["beta"]
    np.testing.assert_allclose(
        output, np.where(expected > 0, expected, 0.1 * expected), rtol=1e-5, atol=1e-6
    )
    assert scope.observed == {}


def test_at_inference_it_is_elementwise_so_that_it_folds_into_a_convolution():
    layer = nn.BatchNorm()
    names = {
        node.operation.label
        for node in topological_order([layer(ad.variable("x", (2, 4, 4, 3)), nn.Scope())])
    }
    assert names == {"Variable", "Constant", "Subtract", "Add", "Sqrt", "Divide", "Multiply"}


def test_its_parameters_come_before_its_buffers_and_are_named_as_everywhere():
    scope = nn.Scope()
    nn.Sequential(nn.BatchNorm(momentum=0.7), nn.Dense(2))(ad.variable("x", (4, 3)), scope)
    layout = nn.Layout(scope.parameters, scope.buffers)
    assert [name for name, _ in layout.shapes] == [
        *("batchnorm/gamma", "batchnorm/beta", "dense/kernel", "dense/bias"),
        *("batchnorm/mean", "batchnorm/variance"),
    ]
    views = layout.views(layout.initial(np.random.default_rng(0)))
    np.testing.assert_array_equal(views["batchnorm/gamma"], [1, 1, 1])
    np.testing.assert_array_equal(views["batchnorm/beta"], [0, 0, 0])
    np.testing.assert_array_equal(views["batchnorm/mean"], [0, 0, 0])
    np.testing.assert_array_equal(views["batchnorm/variance"], [1, 1, 1])
    assert layout.momenta == (0.7, 0.7)


@pytest.mark.parametrize("shift", [0.0, 30.0])  # a variance by either way
@pytest.mark.parametrize("shape", [(7, 3), (3, 2, 3, 4)])
@pytest.mark.parametrize("deviation", [root, lambda v: ad.sqrt(v) + 0.1])
def test_the_gradients_are_the_slopes(shape, shift, deviation):
    channels = shape[-1]

    def build(x, gamma, beta):
        normal, mean, variance = ad.batch_normalize(x, gamma, beta, deviation)
        return ad.tanh(normal) + mean * variance

    random = np.random.default_rng(5)
    at = draw(shape) + shift, random.standard_normal(channels), random.standard_normal(channels)
    check_gradients(build, *at, rng=random, tolerance=1e-5)


@pytest.mark.parametrize("many_elements", [1000, 1 << 16])  # with lanes, and without
@pytest.mark.parametrize("strip_bytes", [1, 20_000, 1 << 17])
@pytest.mark.parametrize("threads", [1, 2])
def test_strips_lanes_and_threads_change_nothing(threads, strip_bytes, many_elements, monkeypatch):
    shape = (16, 6, 5, 40)
    x, g = ad.variable("x", shape, np.float64), ad.variable("g", shape, np.float64)
    gamma, beta = ad.variable("a", (40,), np.float64), ad.variable("b", (40,), np.float64)
    normal, *batch = ad.batch_normalize(x, gamma, beta, root)
    outputs = [normal, *batch, *ad.gradients(ad.sum(normal * g), [x, gamma, beta])]
    arrays = {"x": draw(shape), "a": draw((1, 40))[0], "b": draw((2, 40))[0], "g": draw(shape, 7)}
    expected = ad.evaluate(outputs, **arrays)
    monkeypatch.setattr(thread_pool, "STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(reduction, "MANY_ELEMENTS", many_elements)
    for far in (0.0, 1e9):  # the variance by either way
        monkeypatch.setattr(normalization, "MAX_SHIFT", far)
        values = ad.compile(outputs, ThreadPool(threads)).bind(arrays).run()
        for value, same in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, same, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 3.0, 5.0, 1e3, 1e5])
def test_a_variance_is_exact_however_far_the_mean_is_from_0(ratio):
    """A mean square less a squared mean would lose all digits in the last two cases."""
    x = (np.random.default_rng(0).standard_normal((20_000, 8)) + ratio).astype(np.float32)
    _, mean, variance = trained(nn.BatchNorm(), x, weights_of(8))
    np.testing.assert_allclose(mean, x.mean(0, np.float64), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-5 + 1e-7 * ratio)


@pytest.mark.parametrize("epsilon_on", ["variance", "deviation"])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_channel_that_is_the_same_everywhere_is_normalized_to_beta(value, epsilon_on):
    x, gamma, beta = (ad.variable(n, s) for n, s in [("x", (50, 2)), ("a", (2,)), ("b", (2,))])
    layer = nn.BatchNorm(epsilon_on=epsilon_on)
    normal, _, variance = ad.batch_normalize(x, gamma, beta, layer._deviation)
    outputs = [normal, variance, *ad.gradients(ad.sum(normal * x), [x, gamma, beta])]
    arrays = {"x": np.full((50, 2), value, np.float32), "a": np.ones(2, np.float32)}
    values = ad.evaluate(outputs, **arrays, b=np.array([1, 2], np.float32))
    # A mean may miss its only value by a rounding error, which is divided by ε then.
    np.testing.assert_allclose(values[0], [[1, 2]] * 50, atol=1e-3)
    assert (values[1] >= 0).all()
    assert all(np.isfinite(each).all() for each in values)


def test_what_flows_back_takes_one_pass():
    x, w = ad.variable("x", (8, 4, 4, 3)), ad.variable("w", (8, 4, 4, 3))
    gamma, beta = ad.variable("gamma", (3,)), ad.variable("beta", (3,))
    normal, *_ = ad.batch_normalize(x, gamma, beta, root)
    (gradient,) = rewrite(ad.gradients(ad.sum(normal * w), [x]))
    passes = [
        node.operation
        for node in topological_order([gradient])
        if node.size == x.size and not isinstance(node.operation, ScaleAndShift) and node.inputs
    ]
    merged = gradient.inputs[0]
    assert isinstance(merged.operation, ScaleAndShift)
    assert len(merged.inputs) == 5
    assert {each.label for each in passes} <= {"Reshape", "Multiply"}  # w · 1


def test_an_output_may_lie_where_either_matrix_lay():
    x, y, out = draw((300, 4)), draw((300, 4), 9), np.empty((300, 4))
    a, b, c = draw((1, 4))[0], draw((2, 4))[0], draw((3, 4))[0]
    for target in (out, x.copy(), y.copy()):
        first = target if (target == x).all() else x
        second = target if (target == y).all() else y
        ScaleAndShift().bind([c, first, a, second, b], target)()
        np.testing.assert_allclose(target, x * a + y * b + c, rtol=1e-12, atol=1e-12)


def test_three_matrices_are_added_up():
    matrices = [draw((40, 3), seed) for seed in range(3)]
    scales = [draw((1, 3), seed)[0] for seed in range(4)]
    out = np.empty((40, 3))
    terms = [each for pair in zip(matrices, scales[1:], strict=True) for each in pair]
    ScaleAndShift().bind([scales[0], *terms], out)()
    expected = sum(x * a for x, a in zip(matrices, scales[1:], strict=True)) + scales[0]
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_what_does_not_fit_is_refused():
    x, row = ad.variable("x", (4, 3)), ad.variable("row", (3,))
    with pytest.raises(ShapeError, match=naming("BatchNorm", "(N, ..., channels)", (3,))):
        nn.BatchNorm()(row, nn.Scope())
    with pytest.raises(ShapeError, match=naming("gamma (4,)", "beta (3,)")):
        ad.batch_normalize(x, ad.variable("gamma", (4,)), row, root)
    with pytest.raises(ShapeError, match=naming((0, 3))):
        ad.batch_normalize(ad.variable("x", (0, 3)), row, row, root)
    with pytest.raises(DTypeError, match=naming("float32", "float64")):
        ad.batch_normalize(ad.variable("x", (4, 3), np.float64), row, row, root)
    with pytest.raises(ParameterError, match=naming("epsilon 0", "'variance'", "'deviation'")):
        nn.BatchNorm(epsilon=0)
    with pytest.raises(ParameterError, match=naming("momentum", 1.0)):
        nn.BatchNorm(momentum=1.0)(x, nn.Scope())


@pytest.mark.parametrize("trained", [True, False])
def test_frozen_batch_norm_is_in_training_what_it_is_at_inference(trained):
    x, weights = draw((4, 3, 5, 2)).astype(np.float32), weights_of(2)
    scope = nn.Scope(training=True)
    layer = nn.FrozenBatchNorm(nn.BatchNorm(activation=nn.relu), trained)
    output = layer(ad.variable("x", x.shape), scope)
    expected = nn.BatchNorm(activation=nn.relu)(ad.variable("x", x.shape), nn.Scope())
    at_inference, in_training = ad.evaluate([expected, output], x=x, **weights)
    np.testing.assert_allclose(in_training, at_inference, rtol=1e-5, atol=1e-5)
    assert not scope.observed
    assert [*scope.parameters, *scope.buffers] == ["gamma", "beta", "mean", "variance"]


@pytest.mark.parametrize("trained", [True, False])
def test_gamma_and_beta_of_frozen_batch_norm_are_trained_by_choice(trained):
    """Whatever is before it is trained in any case."""
    x, weights = (
        draw((4, 3)),
        {name: each.astype(np.float64) for name, each in weights_of(3).items()},
    )
    scope = nn.Scope(training=True)
    layer = nn.Sequential(nn.Dense(3), nn.FrozenBatchNorm(nn.BatchNorm(epsilon=0.1), trained))
    loss = ad.sum(ad.square(layer(ad.variable("x", x.shape), scope)))
    dense, normal = "dense/", "frozenbatchnorm/"
    kernel, bias = draw((3, 3)), draw((1, 3))[0]
    arrays = {f"{normal}{name}": each.astype(np.float32) for name, each in weights.items()}
    arrays |= {f"{dense}kernel": kernel.astype(np.float32), f"{dense}bias": bias.astype(np.float32)}
    found = dict(
        zip(
            scope.variables,
            ad.evaluate(
                ad.gradients(loss, list(scope.variables.values())), x=x.astype(np.float32), **arrays
            ),
            strict=True,
        )
    )
    inner = x @ kernel + bias
    normalized = (inner - weights["mean"]) / np.sqrt(weights["variance"] + 0.1)
    slopes = 2 * (normalized * weights["gamma"] + weights["beta"])
    assert (f"{normal}gamma" in found) == (f"{normal}beta" in found) == trained
    expected = {
        **({f"{normal}gamma": (slopes * normalized).sum(0)} if trained else {}),
        **({f"{normal}beta": slopes.sum(0)} if trained else {}),
        f"{dense}bias": (slopes * weights["gamma"] / np.sqrt(weights["variance"] + 0.1)).sum(0),
    }
    for name, slope in expected.items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-4, atol=1e-4)


def test_all_batch_norm_in_a_frozen_network_is_frozen_and_none_outside_of_it():
    inner = nn.Residual(nn.BatchNorm(), nn.Sequential(nn.BatchNorm()))
    scope = nn.Scope(training=True)
    nn.Sequential(nn.FrozenBatchNorm(inner), nn.BatchNorm())(ad.variable("x", (4, 3)), scope)
    assert set(scope.observed) == {"batchnorm/mean", "batchnorm/variance"}
    assert len(scope.buffers) == 6
