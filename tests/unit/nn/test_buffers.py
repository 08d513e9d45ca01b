"""Buffers: declared beside parameters, observed in training, averaged where the weights are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.data import Dataset, dataset_named
from dist_net.errors import ParameterError, SettingError, ShapeError
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe
from dist_net.optim import SGD, Adam, Momentum, Optimizer, start_rule
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.single_process import SingleProcess
from dist_net.training.server.store import PrivateBuffers, WeightStore
from dist_net.vector import Vector
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


def test_a_network_without_buffers_is_trained_as_a_whole() -> None:
    layout = nn.Model(nn.Sequential(nn.Flatten(), nn.Rescale(), nn.Dense(3)), (2, 2)).layout
    assert layout.size == layout.trained_size
    assert layout.momenta == layout.buffers == ()


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
    with pytest.raises(SettingError, match=naming("momentum")):
        start_rule(SGD(), (("mean", (1,)),), (momentum,))


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


@pytest.mark.parametrize("in_place", [True, False])
def test_the_head_is_trained_and_the_tail_averaged(in_place: bool) -> None:
    rule = start_rule(Momentum(0.5), LAYOUT, MOMENTA)
    assert {name: state.shape for name, state in rule.state.items()} == {"velocity": (4,)}
    own = Momentum(0.5).start(4)
    weights, head = vector(1, 2, 3, 4, 0, 10, -10, 8), vector(1, 2, 3, 4)
    gradient = vector(1, -1, 2, -2, 10, 10, 10, 0)
    for step in (1, 2):
        out = weights if in_place else np.empty_like(weights)
        rule.update(weights, [gradient], out, [0.1], step)
        own.update(head, [gradient[:4]], head, [0.1], step)
        weights = out
    np.testing.assert_array_equal(weights[:4], head)
    np.testing.assert_allclose(weights[4:], [1.9, 10, -6.2, 2], rtol=1e-6)
    np.testing.assert_array_equal(gradient, vector(1, -1, 2, -2, 10, 10, 10, 0))


def test_the_tail_is_averaged_for_each_gradient_in_turn() -> None:
    rule, together = (start_rule(Momentum(0.5), LAYOUT, MOMENTA) for _ in range(2))
    weights, gradients = vector(1, 2, 3, 4, 0, 10, -10, 8), [vector(*range(8)), -vector(*range(8))]
    first, second, both = (np.empty_like(weights) for _ in range(3))
    rule.update(weights, gradients[:1], first, [0.1], 1)
    rule.update(first, gradients[1:], second, [0.2], 2)
    together.update(weights, gradients, both, [0.1, 0.2], 1)
    np.testing.assert_array_equal(both, second)


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(0.5)])
@pytest.mark.parametrize("place", [3, 7], ids=["trained", "averaged"])
@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_what_is_not_finite_leaves_the_state_as_it_is(
    optimizer: Optimizer, place: int, value: float
) -> None:
    rule = start_rule(optimizer, LAYOUT, MOMENTA)
    weights, out = vector(1, 2, 3, 4, 0, 10, -10, 8), vector(*[0] * 8)
    good, bad = vector(*range(8)), vector(*range(8))
    bad[place] = value
    assert not rule.update(weights, [good, bad], out, [0.1, 0.1], 1, if_finite=True)
    assert all((vector == 0).all() for vector in rule.state.values())
    assert rule.update(weights, [good, good], out, [0.1, 0.1], 1, if_finite=True)


def test_a_vector_of_another_length_is_refused() -> None:
    rule, whole = start_rule(SGD(), LAYOUT, MOMENTA), np.zeros(8, np.float32)
    for short in range(3):
        weights, gradient, out = [whole[:7] if i == short else whole for i in range(3)]
        with pytest.raises(ShapeError, match=naming(8, (7,))):
            rule.update(weights, [gradient], out, [0.1], 1)


# Averaging, asynchronously


def a_store(first: float = 1.0, momentum: float = 0.9) -> WeightStore:
    layout = (("weight", (1,)), ("variance", (1,)))
    return WeightStore(
        PrivateBuffers(2), vector(0.0, first), start_rule(SGD(), layout, (momentum,))
    )


@pytest.mark.parametrize("staleness", [0, 1, 4, 16, 64])
def test_the_average_finds_what_is_observed_however_stale_that_is(staleness: int) -> None:
    """Each worker observes 0.01, on weights of so many updates ago, after a first value of 1."""
    store = a_store()
    under_way = [vector(0.0, 1.0)] * staleness
    averages = []
    for _ in range(150 + staleness):
        under_way.append(vector(0.0, 0.01))
        assert store.apply([under_way.pop(0)], [0.1])
        averages.append(float(store.weights[1]))
    assert averages == sorted(averages, reverse=True)  # straight there, without a swing
    assert averages[-1] == pytest.approx(0.01, rel=1e-3)


@given(st.lists(st.floats(0, 100, width=32), max_size=80), st.sampled_from([0.0, 0.5, 0.9, 0.999]))
def test_the_average_stays_among_what_was_observed(values: list[float], momentum: float) -> None:
    """Whoever sends it and whenever: so a variance is never negative."""
    store = a_store(1.0, momentum)
    for value in values:
        assert store.apply([vector(0.0, value)], [0.1])
        assert store.weights[1] >= 0
        rounding = 1e-6 * max(1.0, *values)
        assert min(1.0, *values) - rounding <= store.weights[1] <= max(1.0, *values) + rounding


def test_workers_that_sent_the_change_would_make_a_variance_negative() -> None:
    """Why they do not: one that saw the first variance, of 1, and comes late."""
    moving = 1.0
    for _ in range(60):
        moving += 0.1 * (0.01 - moving)
    assert moving + 0.1 * (0.01 - 1.0) < 0
    store = a_store()
    for _ in range(60):
        store.apply([vector(0.0, 0.01)], [0.1])
    assert store.apply([vector(0.0, 0.01)], [0.1])  # what the late one observed
    assert store.weights[1] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_in_the_tail_too(bad: float) -> None:
    store = a_store()
    assert not store.apply([vector(1.0, bad)], [0.1])
    np.testing.assert_array_equal(store.weights, [0, 1])
    assert store.version == 0


# In one process, and by its recipe


def a_recipe(network: nn.Layer) -> Recipe:
    return Recipe(network, "digits", (8, 8), optimizer=Adam(), learning_rate=0.01, epochs=6)


def test_one_process_learns_with_batch_norm(digits: Dataset) -> None:
    network = nn.Sequential(
        nn.Rescale(), nn.Flatten(), nn.Dense(24), nn.BatchNorm(activation=nn.relu), nn.Dense(10)
    )
    recipe = a_recipe(network)
    model = recipe.model
    training = SingleProcess(recipe, digits, seed=1)
    results = list(training.epochs())
    assert results[-1].loss < 0.2 * results[0].loss
    evaluate, trained = Evaluator(model, digits), model.layout.trained_size
    learned = evaluate(training.weights)
    assert learned.accuracy > 0.9
    forgotten = training.weights.copy()
    forgotten[trained:] = recipe.initial_weights(1)[trained:]
    assert evaluate(forgotten).loss > 1.5 * learned.loss  # the buffers matter


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
    plan = model.compile_training(1, np.random.default_rng(0), None, (5,), np.float32)
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
    assert training.updates == 2
