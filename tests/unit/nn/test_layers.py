"""Layers, activations, losses and initializers against their definitions, and models of them."""

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.errors import DTypeError, IndexRangeError, ParameterError, ShapeError
from naming import naming

RNG = np.random.default_rng(7)
LOGITS = RNG.standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2, 0], np.uint8)


def value(expression: ad.Expression, **arrays: np.ndarray) -> np.ndarray:
    return ad.evaluate([expression], **arrays)[0]


def applied(layer: nn.Layer, x: np.ndarray, scope: nn.Scope | None = None) -> np.ndarray:
    """The layer's output, its parameters drawn by their initializers."""
    scope = scope or nn.Scope()
    output = layer(ad.variable("x", x.shape, x.dtype), scope)
    layout = nn.Layout(scope.parameters)
    return value(output, x=x, **layout.views(layout.initial(np.random.default_rng(0))))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.linear, lambda x: x),
        (nn.relu, lambda x: np.maximum(x, 0)),
        (nn.leaky_relu, lambda x: np.where(x > 0, x, 0.1 * x)),
        (nn.tanh, np.tanh),
        (nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (nn.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    ],
)
def test_activations_are_what_their_names_say(activation, expected) -> None:  # type: ignore[no-untyped-def]
    x = ad.variable("x", LOGITS.shape)
    np.testing.assert_allclose(value(activation(x), x=LOGITS), expected(LOGITS), rtol=2e-6)


def test_a_sigmoid_of_large_numbers_does_not_overflow() -> None:
    x = np.array([-1e4, 1e4], np.float32)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(value(nn.sigmoid(ad.variable("x", (2,))), x=x), [0, 1])


def test_a_sigmoid_keeps_its_digits_near_0() -> None:
    x = np.array([-80, -20, -5, 20], np.float32)
    node = ad.variable("x", x.shape)
    outputs = [nn.sigmoid(node), *ad.gradients(ad.sum(nn.sigmoid(node)), [node])]
    found, slope = ad.evaluate(outputs, x=x)
    powers = np.exp(-np.abs(x.astype(np.float64)))
    np.testing.assert_allclose(found, np.where(x < 0, powers, 1) / (1 + powers), rtol=1e-6)
    np.testing.assert_allclose(slope, powers / (1 + powers) ** 2, rtol=1e-6)


INFINITE = np.array([-np.inf, np.inf, np.nan], np.float32)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.relu, [0, np.inf, np.nan]),
        (nn.leaky_relu, INFINITE),
        (lambda x: nn.leaky_relu(x, 0.0), [0, np.inf, np.nan]),
        (nn.relu6, [0, 6, np.nan]),
        (nn.tanh, [-1, 1, np.nan]),
        (nn.sigmoid, [0, 1, np.nan]),
        (lambda x: ad.where(x > 0.0, x, 0.0), [0, np.inf, 0]),
    ],
)
def test_an_infinite_input_is_what_mathematics_says(activation, expected) -> None:  # type: ignore[no-untyped-def]
    x = ad.variable("x", INFINITE.shape)
    np.testing.assert_array_equal(value(activation(x), x=INFINITE), np.array(expected, "f"))
    (slope,) = ad.gradients(ad.sum(activation(x)), [x])
    assert np.isfinite(value(slope, x=INFINITE)[:2]).all()


def test_dense_is_a_matrix_product_and_a_bias() -> None:
    kernel, bias = RNG.standard_normal((4, 3)), RNG.standard_normal(3)
    layer = nn.Dense(3, nn.relu, nn.copy_of(kernel), nn.copy_of(bias))
    expected = np.maximum(LOGITS @ kernel + bias, 0)
    np.testing.assert_allclose(applied(layer, LOGITS), expected, rtol=1e-5, atol=1e-6)


def test_dense_is_the_same_at_each_position() -> None:
    x = RNG.standard_normal((2, 5, 3, 4)).astype(np.float32)
    rows = applied(nn.Dense(3, nn.softmax), x.reshape(30, 4))
    np.testing.assert_array_equal(applied(nn.Dense(3, nn.softmax), x), rows.reshape(2, 5, 3, 3))


def test_dense_says_what_it_needs() -> None:
    with pytest.raises(ShapeError, match=naming("Dense", "(N, ..., features)", "(6,)")):
        applied(nn.Dense(3), LOGITS[:, 0])


def test_flatten_rescale_lambda_residual_and_sequential() -> None:
    pixels = RNG.integers(0, 256, (5, 2, 2), np.uint8)
    network = nn.Sequential(
        nn.Rescale(1 / 255, -0.5),
        nn.Flatten(),
        nn.Residual(nn.Lambda(ad.square), nn.Lambda(lambda x: x * 2.0)),
    )
    x = pixels.reshape(5, 4) / 255 - 0.5
    np.testing.assert_allclose(applied(network, pixels), x + 2 * x**2, rtol=1e-5, atol=1e-6)


def test_a_residual_whose_layers_change_the_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=naming((6, 4), (6, 3))):
        applied(nn.Residual(nn.Dense(3)), LOGITS)


def test_dropout_in_training_drops_its_share_and_keeps_the_mean() -> None:
    ones = np.ones((400, 400), np.float32)
    scope = nn.Scope(training=True, generator=np.random.default_rng(3))
    dropped = applied(nn.Dropout(0.25), ones, scope)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)


def test_dropout_draws_anew_at_each_run() -> None:
    scope = nn.Scope(training=True, generator=np.random.default_rng(3))
    plan = ad.compile([nn.Dropout(0.5)(ad.variable("x", (100,)), scope)])
    bound = plan.bind({"x": np.ones(100, np.float32)})
    assert not np.array_equal(bound.run()[0].copy(), bound.run()[0])


def test_dropout_at_inference_is_nothing() -> None:
    np.testing.assert_array_equal(applied(nn.Dropout(0.9), LOGITS), LOGITS)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, math.nan])
def test_dropout_refuses_a_rate_that_cannot_be(rate: float) -> None:
    with pytest.raises(ParameterError, match=naming(rate, "0 <= rate < 1")):
        nn.Dropout(rate)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.5), (math.nan, 1.0), (0.0, math.nan)])
def test_clipping_refuses_bounds_that_cannot_be(low: float, high: float) -> None:
    with pytest.raises(ParameterError, match=naming(low, high)):
        ad.clip(ad.variable("x", (2,)), low, high)


def test_nothing_flows_back_where_a_value_is_clipped_or_at_a_bound() -> None:
    x = ad.variable("x", (5,))
    (slope,) = ad.gradients(ad.sum(nn.relu6(x)), [x])
    at = np.array([-1, 0, 3, 6, 7], np.float32)
    np.testing.assert_array_equal(value(slope, x=at), [0, 0, 1, 0, 0])


@pytest.mark.parametrize("slope", [-0.1, 1.5, math.nan])
def test_a_leaky_relu_refuses_a_slope_that_cannot_be(slope: float) -> None:
    with pytest.raises(ParameterError, match=naming(slope, "0 <= slope <= 1")):
        nn.leaky_relu(ad.variable("x", (2,)), slope)


def test_cross_entropy_of_logits_and_of_probabilities_agree() -> None:
    logits, labels = ad.variable("x", (6, 4)), ad.variable("y", (6,), np.uint8)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(6), LABELS])
    fused = nn.cross_entropy_of_logits(logits, labels)
    np.testing.assert_allclose(value(fused, x=LOGITS, y=LABELS), expected, rtol=1e-5)
    composed = nn.cross_entropy_of_probabilities(nn.softmax(logits), labels)
    np.testing.assert_allclose(value(composed, x=LOGITS, y=LABELS), expected, rtol=1e-5)


def test_cross_entropy_of_a_probability_of_zero_is_finite() -> None:
    x, y = ad.variable("x", (1, 2)), ad.variable("y", (1,), np.uint8)
    impossible = np.array([[0, 1]], np.float32)
    loss = value(nn.cross_entropy_of_probabilities(x, y), x=impossible, y=np.zeros(1, np.uint8))
    assert loss[0] == pytest.approx(-math.log(1e-7), rel=1e-5)


LOSSES = [
    nn.cross_entropy_of_logits,
    nn.cross_entropy_of_probabilities,
    nn.mean_absolute_error,
    nn.mean_squared_error,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("wrong", [4, 5, 255, -1, -100])
def test_a_label_of_no_class_is_refused_where_it_is_met(loss: nn.losses.Loss, wrong: int) -> None:
    x, y = ad.variable("x", LOGITS.shape), ad.variable("y", LABELS.shape, np.int64)
    losses = loss(x, y)
    gradient = ad.gradients(ad.sum(losses), [x])
    labels = LABELS.astype(np.int64)
    ad.evaluate([losses, *gradient], x=LOGITS, y=labels)
    labels[3] = wrong
    with pytest.raises(IndexRangeError, match=naming(wrong, "position 3", "0 to 3")):
        ad.evaluate([losses, *gradient], x=LOGITS, y=labels)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_labels_are_integers(loss: nn.losses.Loss, dtype: type) -> None:
    with pytest.raises((DTypeError, ShapeError), match="integer"):
        loss(ad.variable("x", (6, 4)), ad.variable("y", (6,), dtype))


TOKENS = RNG.standard_normal((2, 3, 4)).astype(np.float32)
TOKEN_LABELS = LABELS.reshape(2, 3)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda each: each.__name__)
def test_the_loss_of_tokens_is_the_mean_of_their_losses(loss: nn.losses.Loss) -> None:
    per_token = loss(ad.variable("x", (6, 4)), ad.variable("y", (6,), np.uint8))
    per_sample = loss(ad.variable("x", (2, 3, 4)), ad.variable("y", (2, 3), np.uint8))
    probabilities = value(ad.softmax(ad.variable("x", TOKENS.shape)), x=TOKENS)
    of_tokens = value(per_token, x=probabilities.reshape(6, 4), y=LABELS)
    found = value(per_sample, x=probabilities, y=TOKEN_LABELS)
    np.testing.assert_allclose(found, of_tokens.reshape(2, 3).mean(1), rtol=1e-6)


REMEDIES = [((2, 3, 4), "argmax(2)"), ((6,), "(-1, 3)"), ((2,), "Flatten")]


@pytest.mark.parametrize(("shape", "remedy"), REMEDIES)
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(ShapeError, match=naming("(3,)", remedy)):
        nn.cross_entropy_of_logits(ad.variable("x", (2, 3, 4)), ad.variable("y", shape, np.uint8))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("logit", [-80.0, -14.0, -0.5, 0.0, 0.5, 14.0, 80.0])
def test_binary_cross_entropy_and_its_slope_keep_the_digits_of_small_losses(
    logit: float, label: int
) -> None:
    x, y = ad.variable("x", (1, 1)), ad.variable("y", (1, 1))
    loss = nn.binary_cross_entropy_of_logits(x, y)
    at = {"x": np.full((1, 1), logit, np.float32), "y": np.full((1, 1), label, np.float32)}
    found, slope = ad.evaluate([loss, *ad.gradients(ad.sum(loss), [x])], **at)
    wrong = -logit if label else logit
    np.testing.assert_allclose(found, [np.logaddexp(0, wrong)], rtol=1e-6)
    np.testing.assert_allclose(slope, [[(1 - 2 * label) / (1 + np.exp(-wrong))]], rtol=1e-6)


@pytest.mark.parametrize("ignored", [-1, 7])
def test_labels_have_the_weight_of_their_class_and_none_if_ignored(ignored: int) -> None:
    labels = np.array([[0, 3, ignored], [ignored, ignored, ignored]])
    weights = [2.0, 1.0, 1.0, 0.5]
    x, y = ad.variable("x", (2, 3, 4)), ad.variable("y", (2, 3), np.int64)
    loss = nn.Weighted(nn.cross_entropy_of_logits, weights, ignored)(x, y)
    found, slope = ad.evaluate([loss, *ad.gradients(ad.sum(loss), [x])], x=TOKENS, y=labels)
    logs = np.log(np.exp(TOKENS) / np.exp(TOKENS).sum(-1, keepdims=True))
    wanted = -(2 * logs[0, 0, 0] + 0.5 * logs[0, 1, 3]) / 2
    np.testing.assert_allclose(found, [wanted, 0], rtol=1e-5)
    assert slope[0, :2].all()
    assert not slope[labels == ignored].any()


def test_unsigned_labels_may_be_weighted() -> None:
    x, y = ad.variable("x", (6, 4)), ad.variable("y", (6,), np.uint8)
    loss = nn.Weighted("cross_entropy_of_logits", [1, 2, 3, 4])(x, y)
    plain = value(nn.cross_entropy_of_logits(x, y), x=LOGITS, y=LABELS)
    np.testing.assert_allclose(value(loss, x=LOGITS, y=LABELS), plain * (LABELS + 1.0), rtol=1e-6)


@pytest.mark.parametrize("loss", ["binary_cross_entropy_of_logits", "mse", "mae"])
def test_the_loss_of_a_map_ignores_pixels(loss: str) -> None:
    targets = (RNG.random((2, 3, 4, 1)) < 0.5).astype(np.float32)
    outputs = RNG.standard_normal(targets.shape).astype(np.float32)
    targets[0, :2] = targets[1, 1:] = -1
    x, y = ad.variable("x", targets.shape), ad.variable("y", targets.shape)
    found = value(nn.Weighted(loss)(x, y), x=outputs, y=targets)
    some = ad.variable("x", (2, 4)), ad.variable("y", (2, 4))
    kept = {"x": outputs[targets >= 0].reshape(2, 4), "y": targets[targets >= 0].reshape(2, 4)}
    np.testing.assert_allclose(found, value(nn.losses.LOSSES[loss](*some), **kept), rtol=1e-5)


def test_a_weighted_loss_refuses_labels_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=naming("(N,)", "(N, 8, 10)")):
        nn.Weighted("mse")(ad.variable("x", (2, 8, 10)), ad.variable("y", (2,), np.uint8))


def test_one_hot_has_a_class_for_each_number_that_labels_may_not_hold() -> None:
    labels = np.array([0, 1, 255], np.uint8)
    (rows,) = ad.evaluate([nn.one_hot(ad.variable("y", (3,), np.uint8), 300)], y=labels)
    np.testing.assert_array_equal(rows, np.eye(300, dtype=np.float32)[labels])


def test_mean_squared_error_takes_targets_or_labels() -> None:
    x, y = ad.variable("x", (6, 4)), ad.variable("y", (6,), np.uint8)
    one_hot = np.eye(4, dtype=np.float32)[LABELS]
    expected = np.square(LOGITS - one_hot).mean(1)
    by_labels = nn.mean_squared_error(x, y)
    np.testing.assert_allclose(value(by_labels, x=LOGITS, y=LABELS), expected, rtol=1e-5)
    targets = ad.variable("t", (6, 4))
    by_targets = nn.mean_squared_error(x, targets)
    np.testing.assert_allclose(value(by_targets, x=LOGITS, t=one_hot), expected, rtol=1e-5)
    with pytest.raises(ShapeError, match=naming("(N, 3)", "(N, 4)")):
        nn.mean_squared_error(x, ad.variable("t", (6, 3)))


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        (nn.glorot_uniform, math.sqrt(2 / (300 + 200))),
        (nn.he_uniform, math.sqrt(2 / 300)),
        (nn.he_normal, math.sqrt(2 / 300)),
    ],
)
def test_initializers_have_the_spread_of_their_papers(initializer, deviation: float) -> None:  # type: ignore[no-untyped-def]
    values = initializer(np.random.default_rng(0), (300, 200))
    assert values.dtype == np.float32
    assert np.mean(values) == pytest.approx(0, abs=deviation / 50)
    assert np.std(values) == pytest.approx(deviation, rel=0.02)
    np.testing.assert_array_equal(values, initializer(np.random.default_rng(0), (300, 200)))


def test_the_fans_of_a_window_count_its_size() -> None:
    values = nn.he_uniform(np.random.default_rng(0), (3, 3, 8, 64))
    assert np.abs(values).max() == pytest.approx(math.sqrt(6 / 72), rel=0.01)


def test_initializers_without_fans_and_copies() -> None:
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(nn.zeros(generator, (2,)), [0, 0])
    np.testing.assert_array_equal(nn.ones(generator, (2,)), [1, 1])
    with pytest.raises(ShapeError, match=r"\(\d*,?\)"):
        nn.glorot_uniform(generator, (5,))
    with pytest.raises(ShapeError, match=naming((2,), (3,))):
        nn.copy_of(np.zeros(2))(generator, (3,))


def test_parameters_are_named_by_their_place_and_lie_end_to_end() -> None:
    network = nn.Sequential(nn.Dense(3), nn.Residual(nn.Dense(3)), nn.Dense(2))
    layout = nn.Model(network, (4,), input_dtype=np.float32).layout
    assert layout.shapes == (
        ("dense/kernel", (4, 3)),
        ("dense/bias", (3,)),
        ("residual/dense/kernel", (3, 3)),
        ("residual/dense/bias", (3,)),
        ("dense_1/kernel", (3, 2)),
        ("dense_1/bias", (2,)),
    )
    vector = np.arange(layout.size, dtype=np.float32)
    views = layout.views(vector)
    np.testing.assert_array_equal(np.concatenate([v.ravel() for v in views.values()]), vector)
    views["dense_1/bias"][:] = -1
    assert (vector[-2:] == -1).all()
    with pytest.raises(ParameterError, match=naming((3,), 35)):
        layout.views(vector[:3])


def test_a_parameter_declared_twice_is_refused() -> None:
    scope = nn.Scope()
    scope.parameter("scale", (1,), nn.ones)
    with pytest.raises(ParameterError, match=naming("'scale'")):
        scope.parameter("scale", (1,), nn.ones)


def test_a_network_whose_output_is_no_batch_of_float32_is_refused() -> None:
    with pytest.raises(ShapeError, match=naming("float32", "uint8[1, 2, 2]")):
        nn.Model(nn.Lambda(lambda x: x), (2, 2))


def test_a_model_trains_down_its_gradient() -> None:
    model = nn.Model(nn.Sequential(nn.Rescale(), nn.Dense(8, nn.tanh), nn.Dense(4)), (5,))
    inputs = RNG.integers(0, 256, (6, 5), np.uint8)
    weights = model.layout.initial(np.random.default_rng(1))
    gradient = np.empty_like(weights)
    plan = model.compile_training(6, np.random.default_rng(2))
    bound = model.bind_training(plan, inputs, LABELS, weights, gradient)
    losses = []
    for _ in range(200):
        loss, right = bound.run()[:2]
        losses.append(float(loss))
        weights -= gradient
    assert losses[-1] < 0.1 * losses[0]
    assert right == 6
    outputs = nn.Predictor(model, weights)(inputs)
    np.testing.assert_array_equal(outputs.argmax(1), LABELS)


def test_a_predictor_gives_the_same_in_batches_of_any_size() -> None:
    model = nn.Model(nn.Sequential(nn.Rescale(), nn.Dense(3)), (5,))
    weights = model.layout.initial(np.random.default_rng(1))
    inputs = RNG.integers(0, 256, (23, 5), np.uint8)
    whole = nn.Predictor(model, weights, batch_size=100)(inputs)
    parts = nn.Predictor(model, weights, batch_size=10)(inputs)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    assert nn.Predictor(model, weights)(inputs[:0]).shape == (0, 3)
    with pytest.raises(ShapeError, match=naming("float32[23, 5]", "uint8", "(N, 5)")):
        nn.Predictor(model, weights)(inputs.astype(np.float32))


def test_threads_that_share_a_model_take_turns_and_a_copy_is_independent() -> None:
    model = nn.Model(nn.Sequential(nn.Rescale(), nn.Dense(64, "tanh"), nn.Dense(3)), (50,))
    model.weights = model.layout.initial(np.random.default_rng(1))
    batches = [RNG.integers(0, 256, (size, 50), np.uint8) for size in (1, 8, 33, 64) * 10]
    expected = [model.predict(each) for each in batches]
    copied = deepcopy(model)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            for found, right in zip(threads.map(model.predict, batches), expected, strict=True):
                np.testing.assert_array_equal(found, right)
    model.weights[:] = 0
    np.testing.assert_array_equal(copied.predict(batches[-1]), expected[-1])


def test_a_predictor_keeps_few_plans_however_many_sizes_it_meets() -> None:
    model = nn.Model(nn.Sequential(nn.Rescale(), nn.Dense(64, "tanh"), nn.Dense(3)), (50,))
    weights = model.layout.initial(np.random.default_rng(1))
    inputs = RNG.integers(0, 256, (400, 50), np.uint8)
    model.weights = weights
    expected = np.concatenate([model.predict(inputs[i : i + 1]) for i in range(len(inputs))])
    tracemalloc.start()
    try:
        model.predict(inputs[:256])
        before, _ = tracemalloc.get_traced_memory()
        for size in range(1, 400, 7):
            found = model.predict(inputs[:size])
            np.testing.assert_allclose(found, expected[:size], rtol=1e-5, atol=1e-6)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 256 * (50 + 64 * 4 * 3)  # less than what one plan computes in
