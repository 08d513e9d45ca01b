"""Models of several inputs and outputs: fields of records, from the dataset to the prediction."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import dist_net
from dist_net.autodiff import Expression
from dist_net.data import Dataset, records
from dist_net.errors import DatasetError, RecipeError, ShapeError
from dist_net.nn import (
    Concatenate,
    Dense,
    Field,
    Model,
    NamedOutputs,
    Rescale,
    Sequential,
    cross_entropy_of_logits,
    mean_squared_error,
)
from dist_net.nn.inference import Inference, prepare
from naming import naming

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (120, 3), np.uint8)
NUMBERS = RANDOM.normal(size=(120, 4)).astype(np.float32)
INPUTS = records(colour=COLOUR, numbers=NUMBERS)
PLACE = (NUMBERS[:, :2] - COLOUR[:, :2] / 255).astype(np.float32)
KIND = (NUMBERS[:, 2] > 0).astype(np.int64)
TARGETS = records(place=PLACE, kind=KIND)


def together() -> Sequential:
    return Sequential(Concatenate(Sequential(Field("colour"), Rescale()), Field("numbers")))


def both(outputs: Expression, targets: Expression) -> Expression:
    place = mean_squared_error(outputs["place"], targets["place"])
    return place + cross_entropy_of_logits(outputs["kind"], targets["kind"])


def network() -> Sequential:
    heads = {"place": Dense(2), "kind": Sequential(Dense(8, "tanh"), Dense(2))}
    return Sequential(together(), Dense(16, "tanh"), NamedOutputs(heads))


def trained() -> Model:
    model = Model(network(), (), both, INPUTS.dtype)
    dist_net.fit(model, INPUTS, TARGETS, epochs=40, learning_rate=0.01)
    return model


def test_several_outputs_are_learnt_from_several_inputs(tmp_path: Path) -> None:
    model = trained()
    outputs = model.predict(INPUTS)
    assert outputs.dtype.names == ("place", "kind")
    assert np.mean((outputs["place"] - PLACE) ** 2) < 0.1 * PLACE.var()
    assert np.mean(outputs["kind"].argmax(1) == KIND) > 0.95
    history = dist_net.fit(model, INPUTS, TARGETS, epochs=1, validation=(INPUTS, TARGETS))
    assert history[0].accuracy is None
    assert history[0].validation is not None
    found = model.evaluate(INPUTS, TARGETS)
    assert found == {"loss": pytest.approx(history[0].validation.loss, rel=1e-5)}
    with pytest.warns(UserWarning, match="both"):  # a loss of its own
        model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m", loss=both)
    np.testing.assert_array_equal(loaded.predict(INPUTS), model.predict(INPUTS))
    assert loaded.evaluate(INPUTS, TARGETS) == found


def test_weights_of_samples_are_a_field_of_the_targets() -> None:
    def weighted_by_sample(outputs: Expression, targets: Expression) -> Expression:
        return cross_entropy_of_logits(outputs, targets["label"]) * targets["weight"]

    is_counted = np.arange(120) < 40
    labels = np.where(is_counted, KIND, 1 - KIND)  # the others are wrong, and without weight
    targets = records(label=labels, weight=is_counted.astype(np.float32))
    model = Model(Dense(2), (4,), weighted_by_sample, np.float32)
    dist_net.fit(model, NUMBERS, targets, epochs=40, learning_rate=0.02)
    assert np.mean((model.predict(NUMBERS).argmax(1) == KIND)[is_counted]) > 0.9


def test_two_fields_train_to_the_same_bits_as_one_array() -> None:
    whole = np.hstack([COLOUR.astype(np.float32) * np.float32(1 / 255), NUMBERS])
    of_fields = Model(Sequential(together(), Dense(2)), (), input_dtype=INPUTS.dtype)
    of_array = Model(Sequential(Dense(2)), (7,), input_dtype=np.float32)
    dist_net.fit(of_fields, INPUTS, KIND, epochs=2)
    dist_net.fit(of_array, whole, KIND, epochs=2)
    np.testing.assert_array_equal(of_fields.weights, of_array.weights)


def test_a_cluster_trains_on_records() -> None:
    def dataset() -> Dataset:
        return Dataset("both", INPUTS, TARGETS, INPUTS, TARGETS)

    recipe = dist_net.Recipe(network(), dataset, (), both, input_dtype=INPUTS.dtype, epochs=2)
    with dist_net.LocalCluster(recipe, workers=2) as cluster:
        assert cluster.wait()["samples"] == 2 * len(INPUTS)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_inference_session_computes_what_the_model_predicts(compiled: bool) -> None:
    model = trained()
    assert model.weights is not None
    prepared = prepare(model, model.weights)
    with closing(Inference(model, prepared, compiled=compiled)) as session:
        outputs = session(INPUTS[:11])
    for name in outputs.dtype.names or ():
        np.testing.assert_allclose(outputs[name], model.predict(INPUTS[:11])[name], atol=1e-5)


def test_the_fields_of_inputs_and_outputs_are_known_by_name() -> None:
    model = Model(network(), (), both, INPUTS.dtype)
    assert model.input_fields == {"colour": (np.uint8, (3,)), "numbers": (np.float32, (4,))}
    assert model.output_fields == {"place": (np.float32, (2,)), "kind": (np.float32, (2,))}
    assert Model(Dense(2), (3,), input_dtype="f4").output_fields == {"": (np.float32, (2,))}


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DatasetError, match=naming(120, 119)):
        records(colour=COLOUR, numbers=NUMBERS[1:])
    broken = INPUTS.copy()
    broken["numbers"][3, 1] = np.nan
    model = Model(network(), (), both, INPUTS.dtype)
    with pytest.raises(DatasetError, match=naming("numbers nan", "index 3")):
        dist_net.fit(model, broken, TARGETS)
    with pytest.raises(DatasetError, match="of dtype"):
        dist_net.fit(model, records(colour=COLOUR.astype("U3"), numbers=NUMBERS), TARGETS)
    with pytest.raises(RecipeError, match=naming("numbers", "input_dtype=")):
        dist_net.fit(model, records(numbers=NUMBERS, colour=COLOUR), TARGETS)
    with pytest.raises(RecipeError, match="kind"):
        dist_net.fit(model, INPUTS, records(place=PLACE))
    with pytest.raises(ShapeError):
        model.require_inputs(NUMBERS)
