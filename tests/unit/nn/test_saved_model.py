"""Models as files: what a file contains, what it restores, and what it refuses."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net import nn
from dist_net.autodiff import Expression
from dist_net.errors import CheckpointError, ModelFileError, ParameterError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nn import Model, network_json
from dist_net.nn.layers import Described, Sequential
from naming import naming

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 8, 8, 3), np.uint8)
LABELS = RANDOM.integers(0, 4, 6)


def trained(network: nn.Layer, **options: Any) -> Model:
    """A model of images with random weights."""
    model = Model(network, (8, 8, 3), **options)
    model.weights = model.layout.initial(np.random.default_rng(1))
    return model


def of_every_kind() -> nn.Layer:
    return Sequential(
        nn.Rescale(),
        nn.Conv2D(np.int64(4), (3, 2), padding=((1, 1), (0, 1)), use_bias=False),
        nn.BatchNorm(activation=nn.relu6),
        nn.Concatenate(
            Sequential(),
            nn.Residual(nn.DepthwiseConv2D(3, activation="tanh"), nn.Lambda(nn.relu)),
        ),
        nn.FrozenBatchNorm(Sequential(nn.MaxPool(2), nn.BatchNorm())),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Dense(4, kernel_initializer=nn.copy_of(RANDOM.normal(size=(128, 4)))),
    )


def scaled(x: Expression) -> Expression:
    return x / 255


def own_network() -> nn.Layer:
    return Sequential(nn.Rescale(), nn.Lambda(scaled), nn.Flatten(), nn.Dense(4))


def own_loss(outputs: Expression, targets: Expression) -> Expression:
    return nn.mean_squared_error(outputs, targets)


def test_a_loaded_model_predicts_and_evaluates_the_same_bits(tmp_path: Path) -> None:
    model = trained(of_every_kind(), class_names=("a", "b", "c", "d"))
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert loaded.class_names == model.class_names
    np.testing.assert_array_equal(loaded.predict(IMAGES), model.predict(IMAGES))
    assert loaded.evaluate(IMAGES, LABELS) == model.evaluate(IMAGES, LABELS)
    assert loaded.to_json() == model.to_json()


def test_every_layer_activation_and_loss_can_be_saved() -> None:
    layers = {
        name
        for name, each in vars(nn).items()
        if inspect.isclass(each) and issubclass(each, Described | Sequential)
    }
    functions = {*nn.layers.ACTIVATIONS, *nn.losses.LOSSES}
    assert {"Dense", "Residual"} <= layers
    assert layers | functions <= network_json.PARTS.keys()


def test_a_model_without_weights_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="fit"):
        Model(of_every_kind(), (8, 8, 3)).save(tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_a_function_of_the_user_is_passed_again(tmp_path: Path) -> None:
    model = trained(own_network())
    with pytest.warns(UserWarning, match=naming("scaled", "network=")):
        model.save(tmp_path / "m")
    with pytest.raises(ModelFileError, match=naming("scaled", "network=")):
        Model.load(tmp_path / "m")
    loaded = Model.load(tmp_path / "m", network=own_network())
    np.testing.assert_array_equal(loaded.predict(IMAGES), model.predict(IMAGES))
    with pytest.raises(CheckpointError, match=naming("dense/kernel", "(192, 4)", "(192, 5)")):
        Model.load(tmp_path / "m", network=Sequential(nn.Rescale(), nn.Flatten(), nn.Dense(5)))


@pytest.mark.parametrize("own_loss", [own_loss, nn.Weighted(own_loss)])
def test_a_loss_of_the_user_is_needed_for_its_figure_only(own_loss: Any, tmp_path: Path) -> None:
    model = trained(of_every_kind(), loss=own_loss)
    with pytest.warns(UserWarning, match=naming("own_loss", "loss=")):
        model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(IMAGES), model.predict(IMAGES))
    with pytest.raises(ParameterError, match=naming("own_loss", "loss=")):
        loaded.evaluate(IMAGES, LABELS)
    assert Model.load(tmp_path / "m", loss=own_loss).evaluate(IMAGES, LABELS) == model.evaluate(
        IMAGES, LABELS
    )


ARRAYS = {
    "float64": RANDOM.normal(size=3),
    "float32, by column": RANDOM.normal(size=(3, 8, 8)).astype(np.float32).T,
    "integers": np.arange(1, 4, dtype=">i2"),
    "an image": RANDOM.normal(size=(8, 8, 3)),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.filterwarnings("error")
def test_arrays_are_part_of_the_file(array: np.ndarray, tmp_path: Path) -> None:
    network = Sequential(nn.Rescale(array, -array), nn.Flatten(), nn.Dense(4))
    model = trained(network, loss=nn.Weighted("cross_entropy_of_logits", np.arange(4)))
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(IMAGES), model.predict(IMAGES))
    assert loaded.evaluate(IMAGES, LABELS) == model.evaluate(IMAGES, LABELS)
    assert repr(loaded) == repr(model)


@pytest.mark.filterwarnings("error")
def test_a_model_of_bools_is_saved(tmp_path: Path) -> None:
    model = Model(Sequential(nn.Rescale(1.0), nn.Dense(2)), (3,), input_dtype=np.bool_)
    model.weights = model.layout.initial(np.random.default_rng(1))
    model.save(tmp_path / "m")
    rows = RANDOM.random((5, 3)) < 0.5
    np.testing.assert_array_equal(Model.load(tmp_path / "m").predict(rows), model.predict(rows))


def test_a_network_that_the_reader_would_refuse_is_not_saved(tmp_path: Path) -> None:
    shape = 300, 300, 3
    model = Model(Sequential(nn.Rescale(np.zeros(shape)), nn.GlobalAveragePool()), shape)
    model.weights = model.layout.initial(np.random.default_rng(1))
    with pytest.raises(ModelFileError, match=naming(f"{network_json.MAX_JSON:,}")):
        model.save(tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_names_are_kept_and_classes_without_names_are_numbered() -> None:
    assert trained(of_every_kind()).class_names == ("0", "1", "2", "3")
    assert trained(of_every_kind(), loss="mse").class_names == ()
    assert trained(of_every_kind(), loss="mse", class_names="abcd").class_names == (*"abcd",)


def test_a_layer_of_the_same_name_is_not_taken_for_ours() -> None:
    class Dense(nn.Dense):
        """Another layer."""

    assert network_json.to_data(Dense(3), {}) == {"?": "Dense(units=3)"}
    assert network_json.to_data(nn.Dense(3), {}) == {
        "Dense": {"units": 3, "activation": {"linear": None}}
    }


def of_sequences() -> nn.Layer:
    cross = {
        "query": Sequential(nn.Conv1D(4, 3, padding=((0, 0), (2, 0))), nn.GroupNorm(2)),
        "value": nn.Bidirectional(nn.LSTM(2, return_sequences=True)),
    }
    ends = {
        "output": nn.Bidirectional(nn.GRU(2, reverse=True)),
        "largest": Sequential(nn.MaxPool1D(2), nn.AveragePool1D(2, 1), nn.GlobalMaxPool()),
        "mean": nn.GlobalAveragePool(),
    }
    steps = nn.Lambda(nn.linear)
    attention = nn.NamedOutputs(cross), nn.MultiHeadAttention(2)
    return Sequential(nn.Rescale(), *attention, nn.Residual(steps), nn.NamedOutputs(ends))


def test_layers_of_sequences_are_saved(tmp_path: Path) -> None:
    model = Model(of_sequences(), (6, 4), "mse")
    model.weights = model.layout.initial(np.random.default_rng(1))
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    steps = RANDOM.integers(0, 256, (3, 6, 4), np.uint8)
    np.testing.assert_array_equal(loaded.predict(steps), model.predict(steps))


def test_layers_in_two_places_share_their_parameters_after_loading(tmp_path: Path) -> None:
    embedding, twice = nn.Embedding(5, 3), nn.Dense(3)
    network = Sequential(embedding, twice, nn.Residual(twice), nn.Unembedding(embedding))
    model = Model(network, (4,), "cross_entropy_of_logits")
    model.weights = model.layout.initial(np.random.default_rng(1))
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert loaded.layout.size == model.layout.size == 5 * 3 + 3 * 3 + 3
    tokens = RANDOM.integers(0, 5, (2, 4), np.uint8)
    np.testing.assert_array_equal(loaded.predict(tokens), model.predict(tokens))


def test_a_layer_in_more_places_than_can_be_computed_is_refused() -> None:
    doubled: dict[str, Any] = {"Flatten": {}}
    for number in range(60):
        doubled = {"Sequential": {"layers": [doubled, {"=": number}]}}
    with pytest.raises(ModelFileError, match=naming(f"{network_json.MAX_CALLS:,}")):
        Model.from_json(changed(network=doubled))
    with pytest.raises(ModelFileError):
        Model.from_json(changed(network={"=": 0}))


def test_a_loss_with_weights_is_saved_and_its_classes_are_known(tmp_path: Path) -> None:
    loss = nn.Weighted("cross_entropy_of_logits", [1.0, 2.0, 3.0, 4.0])
    model = trained(of_every_kind(), loss=loss)
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert loaded.class_names == ("0", "1", "2", "3")
    assert loaded.evaluate(IMAGES, LABELS) == model.evaluate(IMAGES, LABELS)


def changed(**parts: Any) -> str:
    """The JSON of a model with other values for some keys."""
    return json.dumps(json.loads(trained(of_every_kind()).to_json()) | parts)


def nested(depth: int) -> str:
    network = '{"Sequential": {"layers": [' * depth + "]}}" * depth
    return changed(network=0).replace('"network": 0', f'"network": {network}')


PIXELS = [["", "|u1", [8, 8, 3]]]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", "NaN", None, 3, "[" * 100_000),
        *(changed(format=2), changed(format=[1]), changed(network=None), changed(network="Dense")),
        changed(network={"eval": {"code": "1"}}),
        changed(network={"Expression": {}}),
        changed(network={"Described": None}),
        changed(network={"Dense": None}),
        changed(network={"relu": {}}),
        changed(network={"Dense": {"units": 3}, "Flatten": {}}),
        changed(network={"Dense": {"units": -1}}),
        changed(network={"Dense": {"units": 3, "__class__": 1}}),
        changed(network={"Sequential": {"layers": 3}}),
        changed(network={"Sequential": {"layers": [{"Dense": {"units": 1 << 40}}]}}),
        changed(network={"Flatten": {}}, inputs=[["", "<f4", [1 << 24, 1 << 24]]]),
        changed(network={"Flatten": {}}, inputs=[["", "<f4", [1 << 27]]]),
        changed(network={"Flatten": {}}, inputs=[["", "O", [3]]]),
        changed(network={"Rescale": {"scale": {"array": ["|O", [1], "AAAAAAAAAAA="]}}}),
        changed(network={"Rescale": {"scale": {"array": ["<f4", [3], "AAAA"]}}}),
        changed(network={"Rescale": {"scale": {"array": ["<f4", [1 << 40, 0], ""]}}}),
        changed(network={"Rescale": {"scale": {"array": ["<f4", [1], 3]}}}),
        changed(network={"Rescale": {"scale": {"array": None}}}),
        changed(network={"Flatten": {}}, inputs=[["", "V1000000000000", [3]]]),
        *(changed(inputs=each) for each in (None, [], [1], [["a"]], PIXELS * 2, {"": 1})),
        *(changed(loss=each) for each in (3, None, {"Dense": None}, {"mse": {}}, "msee")),
        *(nested(500), nested(5_000)),
        changed(padding="x" * network_json.MAX_JSON),
    ],
    ids=lambda text: f"{text!s:.60}",
)
def test_other_json_is_refused(text: Any) -> None:
    with pytest.raises(ModelFileError):
        Model.from_json(text)


def test_a_network_of_huge_values_is_refused_before_they_are_allocated() -> None:
    wide = {"Sequential": {"layers": [{"Rescale": {}}, {"Flatten": {}}, {"Dense": {"units": 1}}]}}
    assert Model.from_json(changed(network=wide)).classes == 1
    layers = [{"Rescale": {}}, {"Conv2D": {"filters": 1 << 23, "size": 1}}]
    with pytest.raises(ModelFileError, match=naming(f"{network_json.MAX_VALUE_BYTES:,}")):
        Model.from_json(changed(network={"Sequential": {"layers": layers}}))


@pytest.mark.parametrize("spoil", [lambda content: content[:-4], lambda _: b"", lambda c: c[::-1]])
def test_a_damaged_file_is_refused(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "m"
    trained(of_every_kind()).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CheckpointError):
        Model.load(path)


def test_the_file_is_a_checkpoint_that_other_programs_can_read(tmp_path: Path) -> None:
    model = trained(of_every_kind())
    model.save(tmp_path / "m")
    checkpoint = read_checkpoint(tmp_path / "m")
    assert checkpoint.layout == model.layout.shapes
    np.testing.assert_array_equal(checkpoint.weights, model.weights)


def test_the_summary_has_a_row_for_each_layer_and_the_sum() -> None:
    rows = [line.split() for line in trained(of_every_kind()).summary().splitlines()]
    assert rows[0] == ["layer", "output", "shape", "parameters"]
    assert ["conv2d", "(N,", "8,", "8,", "4)", "72"] in rows
    assert ["concatenate/residual/depthwiseconv2d", "(N,", "8,", "8,", "4)", "40"] in rows
    assert rows[-2:] == [["dense", "(N,", "4)", "516"], ["Sequential", "(N,", "4)", "652"]]


def test_the_summary_counts_a_layer_in_two_places_once() -> None:
    embedding, twice = nn.Embedding(5, 3), nn.Dense(3)
    network = Sequential(embedding, twice, nn.Residual(twice), nn.Unembedding(embedding))
    rows = [line.split() for line in Model(network, (4,)).summary().splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [
        ("embedding", "15"),
        ("dense", "12"),
        ("dense", "0"),
        ("unembedding", "0"),
        ("Sequential", "27"),
    ]


def test_a_model_of_numbers_has_a_loss_and_no_accuracy() -> None:
    model = trained(of_every_kind(), loss="mse")
    expected = np.mean(model.predict(IMAGES) ** 2)
    figures = model.evaluate(IMAGES, np.zeros((6, 4), np.float32))
    assert figures == {"loss": pytest.approx(expected, rel=1e-6)}
