"""Frozen layers: nothing changes them, in one process and in a cluster of three workers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net import autodiff as ad
from dist_net import nn
from dist_net.data import Dataset
from dist_net.errors import ParameterError, SettingError
from dist_net.nn import Model
from dist_net.optim import SGD, AdamW, Momentum, start_rule
from dist_net.training.server.consistency import WHOLE
from dist_net.training.server.state import StateVersions as StateStore
from naming import naming

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(400, 6)).astype(np.float32)
LABELS = (X[:, 0] * X[:, 1] > 0).astype(np.int64)


def base() -> nn.Sequential:
    return nn.Sequential(nn.Dense(16, "tanh"), nn.BatchNorm(), nn.Dropout(0.1))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Dense(6), nn.Frozen(base()), nn.Dense(2))


def model_of(network: nn.Layer) -> Model:
    model = Model(network, (6,), input_dtype=np.float32)
    model.weights = model.layout.initial(np.random.default_rng(1))
    return model


def arrays(model: Model) -> dict[str, np.ndarray]:
    assert model.weights is not None
    return {name: each.copy() for name, each in model.layout.views(model.weights).items()}


def require_frozen(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    for name, array in after.items():
        if name.startswith("sequential/"):
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        else:
            assert not np.array_equal(array, before[name]), name


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.1), Momentum(0.9)], ids=str)
def test_no_update_decay_or_momentum_changes_frozen_layers(optimizer: Any) -> None:
    model = model_of(network())
    before = arrays(model)
    options = {"optimizer": optimizer, "clip_norm": 1.0, "average_decay": 0.9}
    history = dist_net.fit(model, X, LABELS, epochs=3, **options)
    require_frozen(before, arrays(model))
    assert history[-1].loss < history[0].loss


def test_frozen_layers_are_buffers_of_the_same_names_after_all_parameters() -> None:
    frozen, whole = model_of(network()), model_of(nn.Sequential(nn.Dense(6), base(), nn.Dense(2)))
    assert sorted(frozen.layout.shapes) == sorted(whole.layout.shapes)
    assert frozen.layout.trained_size == 6 * 6 + 6 + 16 * 2 + 2
    assert frozen.layout.momenta == (1.0,) * 6
    assert "sequential/dense " in frozen.summary()


def test_weights_go_by_name_to_a_model_that_trains_all_layers() -> None:
    frozen, whole = model_of(network()), model_of(nn.Sequential(nn.Dense(6), base(), nn.Dense(2)))
    assert whole.weights is not None
    known = arrays(frozen)
    for name, view in whole.layout.views(whole.weights).items():
        view[...] = known[name]
    np.testing.assert_array_equal(whole.predict(X), frozen.predict(X))


@pytest.mark.parametrize("consistency", ["rounds", "async"])
def test_three_workers_leave_frozen_layers_as_they_were(consistency: Any) -> None:
    """A third of a number, three times, is not always the number."""

    def dataset() -> Dataset:
        return Dataset("products", X, LABELS, X, LABELS, ("negative", "positive"))

    recipe = dist_net.Recipe(
        network(), dataset, (6,), input_dtype=np.float32, epochs=6, optimizer=AdamW(), batch_size=24
    )
    layout = recipe.model.layout
    before = layout.views(recipe.initial_weights(0))
    with dist_net.LocalCluster(recipe, workers=3, consistency=consistency, seed=0) as cluster:
        cluster.wait()
        require_frozen(before, layout.views(cluster.snapshot().weights))


def test_the_mean_of_results_does_not_change_frozen_numbers() -> None:
    layout = (("weight", (1,)), ("kernel", (400,)), ("mean", (400,)))
    numbers = np.concatenate([X[0, :1], X[:, 0], X[:, 0]])
    store = StateStore(start_rule(SGD(), layout, (1.0, 0.9)), numbers)
    results = [store.state * np.float32(1 / 3) for _ in range(3)]
    assert store.apply(results[0] + results[1] + results[2], WHOLE)
    np.testing.assert_array_equal(store.state[1:401], numbers[1:401])
    assert not np.array_equal(store.state[401:801], numbers[401:])


def test_a_frozen_network_passes_gradients_to_the_layers_before_it() -> None:
    scope = nn.Scope(training=True)
    layer = nn.Sequential(nn.Dense(2), nn.Frozen(nn.Dense(2)))
    loss = ad.sum(ad.square(layer(ad.variable("x", (3, 2)), scope)))
    assert [*scope.variables] == ["dense/kernel", "dense/bias"]
    slopes = ad.gradients(loss, [*scope.variables.values()])
    views = {
        name: RANDOM.normal(size=each.shape).astype(np.float32)
        for name, each in (scope.parameters | scope.buffers).items()
    }
    assert all(np.any(each) for each in ad.evaluate(slopes, x=X[:3, :2], **views))


def test_a_layer_in_two_places_is_frozen_in_both_or_none() -> None:
    embedding = nn.Embedding(5, 3)
    tied = nn.Frozen(embedding), nn.Dense(3), nn.Frozen(nn.Unembedding(embedding))
    layout = Model(nn.Sequential(*tied), (4,)).layout
    assert [name for name, _ in layout.shapes] == [
        *("dense/kernel", "dense/bias", "embedding/table")
    ]
    for layers in (
        (nn.Frozen(embedding), nn.Unembedding(embedding)),
        (embedding, nn.Frozen(nn.Unembedding(embedding))),
    ):
        with pytest.raises(ParameterError, match=naming("embedding/table", "Frozen in one place")):
            Model(nn.Sequential(*layers), (4,))


def test_a_model_without_a_parameter_to_train_is_refused() -> None:
    model = Model(nn.Frozen(nn.Dense(2)), (6,), input_dtype=np.float32)
    with pytest.raises(SettingError, match=naming("no parameter to train", "Frozen")):
        dist_net.fit(model, X, LABELS)


def test_frozen_layers_are_saved_and_loaded(tmp_path: Path) -> None:
    model = model_of(network())
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert loaded.layout.momenta == model.layout.momenta
    assert json.loads(loaded.to_json()) == json.loads(model.to_json())
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
