"""Buffers: declared beside parameters, observed in training, averaged where the weights are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.data import Dataset, dataset_named
from dist_net.errors import ParameterError, ShapeError
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe
from dist_net.optim import SGD, Adam, Momentum, UpdateRule, start_rule
from dist_net.training.run.fit import SingleProcess
from dist_net.training.run.run_options import RunOptions
from naming import naming

LAYOUT = (("weight", (2, 2)), ("mean", (3,)), ("scale", ()))  # a parameter and two buffers
MOMENTA = (0.9, 0.5)


class Centered:
    """Features less their moving mean, at inference, and a buffer that nobody observes."""

    def __call__(self, x: ad.Expression, scope: nn.Scope) -> ad.Expression:
        mean = scope.buffer("mean", x.shape[1:], nn.zeros, momentum=0.75)
        scope.buffer("unused", (2,), nn.ones)
        if not scope.training:
            return x - mean
        center = ad.mean(x, 0)
        scope.observe(mean, center)
        return x - center


NETWORK = nn.Sequential(nn.Rescale(), nn.Flatten(), nn.Dense(3), Centered(), nn.Dense(10))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return dataset_named("digits")


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


# Declaring


def test_buffers_lie_after_all_parameters() -> None:
    layout = nn.Model(NETWORK, (8, 8)).layout
    assert [name for name, _ in layout.shapes] == [
        *("dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"),
        *("centered/mean", "centered/unused"),
    ]
    assert layout.size == layout.trained_size + 5 == 64 * 3 + 3 + 3 * 10 + 10 + 5
    assert layout.momenta == (0.75, 0.9)
    initial = layout.initial(np.random.default_rng(0))
    np.testing.assert_array_equal(initial[-5:], [0, 0, 0, 1, 1])
    views = layout.views(initial)
    views["centered/mean"][:] = 7
    assert (initial[-5:-2] == 7).all()


def test_a_name_is_given_once_to_a_parameter_or_a_buffer() -> None:
    scope = nn.Scope()
    scope.parameter("scale", (1,), nn.ones)
    scope.buffer("mean", (1,), nn.zeros)
    with pytest.raises(ParameterError, match="'scale'"):
        scope.buffer("scale", (1,), nn.ones)
    with pytest.raises(ParameterError, match="'mean'"):
        scope.parameter("mean", (1,), nn.ones)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, np.nan])
def test_a_momentum_that_cannot_be_is_refused(momentum: float) -> None:
    with pytest.raises(ParameterError, match=naming("momentum")):
        nn.Scope().buffer("mean", (1,), nn.zeros, momentum)


def test_what_is_observed_must_be_a_buffers_once_and_of_its_shape() -> None:
    scope = nn.Scope(training=True)
    parameter = scope.parameter("scale", (3,), nn.ones)
    buffer = scope.child("inner").buffer("mean", (3,), nn.zeros)
    value = ad.variable("x", (3,))
    for other in (parameter, value * 2.0):
        with pytest.raises(ParameterError, match=naming("observe", "buffer()")):
            scope.observe(other, value)
    with pytest.raises(ShapeError, match=naming("float32[4]", "float32[3]")):
        scope.observe(buffer, ad.variable("x", (4,)))
    scope.observe(buffer, value)
    with pytest.raises(ParameterError, match=naming("observe", "inner/mean")):
        scope.observe(buffer, value)


# Observing


def test_a_training_step_writes_what_it_observed_behind_the_gradient() -> None:
    model = nn.Model(NETWORK, (8, 8))
    random = np.random.default_rng(0)
    inputs, labels = random.integers(0, 256, (20, 8, 8), np.uint8), np.zeros(20, np.uint8)
    weights = model.layout.initial(random)
    weights[-5:] = [9, 8, 7, 6, 5]
    gradient = np.full_like(weights, np.nan)
    plan = model.compile_training(20, random)
    model.bind_training(plan, inputs, labels, weights, gradient).run()
    views = model.layout.views(weights)
    hidden = inputs.reshape(20, 64) / 255 @ views["dense/kernel"] + views["dense/bias"]
    np.testing.assert_allclose(gradient[-5:-2], hidden.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(gradient[-2:], [6, 5])  # not observed: its own value
    assert np.isfinite(gradient).all()


def test_inference_reads_the_buffers_in_the_vector() -> None:
    model = nn.Model(NETWORK, (8, 8))
    inputs = np.random.default_rng(1).integers(0, 256, (5, 8, 8), np.uint8)
    weights = model.layout.initial(np.random.default_rng(0))
    predict = nn.Predictor(model, weights)
    before = predict(inputs)
    weights[-5:-2] = [1, 2, 3]
    kernel = model.layout.views(weights)["dense_1/kernel"]
    np.testing.assert_allclose(predict(inputs), before - [1, 2, 3] @ kernel, atol=1e-5)


# Averaging


def stepped(rule: UpdateRule, state: Vector, gradient: Vector, rate: float = 0.1) -> Vector:
    following = np.empty_like(state)
    rule.step(state, gradient, rate, following)
    return following


def test_the_head_is_trained_and_the_tail_averaged() -> None:
    rule, own = start_rule(Momentum(0.5), LAYOUT, MOMENTA), Momentum(0.5).start(4)
    state = rule.initial(vector(1, 2, 3, 4, 0, 10, -10, 8))
    assert rule.parts(state)["velocity"].shape == (4,)
    head = own.initial(vector(1, 2, 3, 4))
    gradient = vector(1, -1, 2, -2, 10, 10, 10, 0)
    for _ in range(2):
        state, head = stepped(rule, state, gradient), stepped(own, head, gradient[:4])
    np.testing.assert_array_equal(state[:4], head[:4])
    np.testing.assert_array_equal(state[8:], head[4:])
    np.testing.assert_allclose(state[4:8], [1.9, 10, -6.2, 2], rtol=1e-6)
    np.testing.assert_array_equal(gradient, vector(1, -1, 2, -2, 10, 10, 10, 0))


@given(st.lists(st.floats(0, 100, width=32), max_size=80), st.sampled_from([0.0, 0.5, 0.9, 0.999]))
def test_the_average_stays_among_what_was_observed(values: list[float], momentum: float) -> None:
    """So a variance is never negative."""
    rule = start_rule(SGD(), (("weight", (1,)), ("variance", (1,))), (momentum,))
    state = rule.initial(vector(0, 1))
    rounding = 1e-6 * max([1.0, *values])
    for value in values:
        state = stepped(rule, state, vector(0, value))
        assert state[1] >= 0
        assert min([1.0, *values]) - rounding <= state[1] <= max([1.0, *values]) + rounding


# Averaging over workers


# In one process, and by its recipe


def a_recipe(network: nn.Layer) -> Recipe:
    return Recipe(network, "digits", (8, 8), optimizer=Adam(), learning_rate=0.01, epochs=6)


def test_the_digest_tells_a_buffer_from_a_parameter_and_momenta_apart(digits: Dataset) -> None:
    def digest(network: nn.Layer) -> str:
        return LoadedRecipe("r", "r", {}, a_recipe(network)).digest(digits)

    def network(momentum: float) -> nn.Layer:
        return nn.Sequential(
            nn.Rescale(), nn.Flatten(), nn.Dense(10), nn.BatchNorm(momentum=momentum)
        )

    assert digest(network(0.9)) == digest(network(0.9))
    assert digest(network(0.9)) != digest(network(0.99))
    changed = replace(a_recipe(network(0.9)), learning_rate=1.0)
    assert LoadedRecipe("r", "r", {}, changed).digest(digits) == digest(network(0.9))


# Minibatches of one row


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5)])
def test_a_minibatch_of_one_row_leaves_the_moving_averages_and_is_scaled_by_them(
    shape: tuple[int, ...],
) -> None:
    layer = nn.BatchNorm(momentum=0.5)
    model = nn.Model(nn.Sequential(layer, nn.Flatten()), shape, "mse", np.float32)
    weights = model.layout.initial(np.random.default_rng(0))
    model.layout.views(weights)["batchnorm/mean"][:] = 3
    model.layout.views(weights)["batchnorm/variance"][:] = 4
    inputs = np.full((1, *shape), 7, np.float32)
    targets = np.zeros((1, 5), np.float32)
    gradient = np.zeros(model.layout.size, np.float32)
    plan = model.compile_training(1, np.random.default_rng(0), None, (np.float32, (5,)))
    loss, *_ = model.bind_training(plan, inputs, targets, weights, gradient).run()
    np.testing.assert_allclose(loss, ((7 - 3) / 2) ** 2, rtol=1e-4)
    observed = model.layout.views(gradient)
    np.testing.assert_array_equal(observed["batchnorm/mean"], 3)
    np.testing.assert_array_equal(observed["batchnorm/variance"], 4)
    assert observed["batchnorm/gamma"].all()
    assert observed["batchnorm/beta"].all()


def with_batch_norm(batch_size: int, samples: int = 4) -> tuple[Recipe, Dataset]:
    inputs, labels = np.eye(samples, 3, dtype=np.float32), np.zeros(samples, np.int64)
    dataset = Dataset("one", inputs, labels, inputs, labels, ("a", "b"))
    network = nn.Sequential(nn.BatchNorm(), nn.Dense(2))
    recipe = Recipe(network, lambda: dataset, (3,), batch_size=batch_size, input_dtype=np.float32)
    return recipe, dataset


@pytest.mark.parametrize(("batch_size", "samples"), [(1, 4), (32, 1)])
def test_batch_norm_refuses_a_training_in_which_every_minibatch_has_one_row(
    batch_size: int, samples: int
) -> None:
    recipe, dataset = with_batch_norm(batch_size, samples)
    with pytest.raises(ParameterError, match=naming("batch_size", 2)):
        SingleProcess(recipe, dataset)
    loaded = LoadedRecipe("one", "one", {}, recipe)
    with pytest.raises(ParameterError, match=naming("batch_size", 2)):
        RunOptions("one").on(loaded, dataset).settings(loaded)


def test_an_epoch_may_end_with_a_minibatch_of_one_row() -> None:
    recipe, dataset = with_batch_norm(3)
    loaded = LoadedRecipe("one", "one", {}, recipe)
    assert RunOptions("one").on(loaded, dataset).settings(loaded).samples == 4
    training = SingleProcess(recipe, dataset)
    assert next(training.epochs()).epoch == 1
    assert training.weights.size == recipe.model.layout.size
