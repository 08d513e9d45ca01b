"""A model trained and asked in one process."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net import Recipe
from dist_net.autodiff import Expression, astype, mean, square
from dist_net.errors import (
    BadInputError,
    DatasetError,
    DTypeError,
    ModelFileError,
    NotFiniteError,
    ParameterError,
    RecipeError,
    SettingError,
    ShapeError,
    UnknownAttributeError,
    UnknownOptionError,
)
from dist_net.nn import (
    AveragePool,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Layer,
    MaxPool,
    Model,
    Residual,
    Sequential,
    mean_squared_error,
    relu,
)
from dist_net.nn.losses import Loss
from dist_net.optim import SGD, Adam, Cosine, Optimizer
from dist_net.training.run.callbacks import EpochResult
from naming import naming

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(200, 3)).astype(np.float32)
LABELS = (INPUTS[:, 0] > INPUTS[:, 1]).astype(np.int64)


CHANNELS_FIRST = np.zeros((2, 3, 8, 8), np.float32)


class Framed:
    """A fake of a DataFrame, a Series or a tensor: not an array, and NumPy makes one of it."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._values, dtype)


class Sparse:
    """A fake of SciPy's sparse matrices."""

    def toarray(self) -> None:
        """Return a dense array, if this were real."""


def classifier() -> Model:
    return Model(Sequential(Dense(2)), (3,), input_dtype=np.float32)


def trained() -> Model:
    model = classifier()
    dist_net.fit(model, INPUTS, LABELS, epochs=1, verbose=0)
    return model


def images() -> Model:
    return Model(Sequential(Conv2D(4, 3), Flatten(), Dense(3)), (8, 8, 3), input_dtype=np.float32)


def test_a_model_learns_and_answers() -> None:
    model = classifier()
    assert model.weights is None
    history = dist_net.fit(
        model, INPUTS, LABELS, validation=(INPUTS[:50], LABELS[:50]), epochs=8, learning_rate=0.1
    )
    assert [result.epoch for result in history] == list(range(1, 9))
    last = history[-1]
    assert last.loss < 0.5 * history[0].loss
    assert last.accuracy is not None
    assert last.accuracy > 0.95
    answers = model.predict(INPUTS[:50]).argmax(-1)
    assert last.validation is not None
    assert last.validation.accuracy == np.mean(answers == LABELS[:50])


def test_numbers_are_predicted() -> None:
    model = Model(Sequential(Dense(2)), (3,), mean_squared_error, np.float32)
    plane = RANDOM.normal(size=(3, 2))
    dist_net.fit(model, INPUTS, INPUTS @ plane, epochs=60, learning_rate=0.1)
    np.testing.assert_allclose(model.predict(np.eye(3, dtype=np.float32)), plane, atol=0.05)


def test_a_callback_sees_each_epoch_and_ends_the_training() -> None:
    seen: list[EpochResult] = []

    def third_is_last(result: EpochResult) -> bool:
        seen.append(result)
        return result.epoch == 3

    history = dist_net.fit(classifier(), INPUTS, LABELS, callbacks=[third_is_last, seen.append])
    assert len(history) == 3
    assert seen == [each for result in history for each in (result, result)]


def test_another_call_goes_on_from_the_weights_and_an_interrupted_one_leaves_them() -> None:
    model = classifier()
    first = dist_net.fit(model, INPUTS, LABELS, epochs=5, learning_rate=0.1)
    weights = model.weights
    assert weights is not None

    def interrupt(_: EpochResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dist_net.fit(model, INPUTS, LABELS, epochs=5, callbacks=[interrupt])
    assert not np.array_equal(model.weights, weights)
    (again,) = dist_net.fit(model, INPUTS, LABELS, epochs=1)
    assert again.loss < first[0].loss


@pytest.mark.parametrize("has_initial_epoch", [False, True])
def test_a_loop_of_calls_trains_as_one_call_does(has_initial_epoch: bool) -> None:
    """With an optimizer that has no state: orders of samples and masks of Dropout continue."""
    alone, looped = (
        Model(Sequential(Dense(8, relu), Dropout(0.5), Dense(2)), (3,), input_dtype=np.float32)
        for _ in range(2)
    )
    history = dist_net.fit(alone, INPUTS, LABELS, epochs=3, optimizer="sgd", batch_size=48)
    results = []
    for epoch in range(3):
        of_call = (
            {"epochs": epoch + 1, "initial_epoch": epoch} if has_initial_epoch else {"epochs": 1}
        )
        results += dist_net.fit(looped, INPUTS, LABELS, optimizer="sgd", batch_size=48, **of_call)
    np.testing.assert_array_equal(alone.weights, looped.weights)
    assert [each.loss for each in results] == [each.loss for each in history]
    assert [each.epoch for each in results] == ([1, 2, 3] if has_initial_epoch else [1, 1, 1])


def test_an_initial_epoch_continues_the_schedule() -> None:
    looped, alone = classifier(), classifier()
    options: dict[str, Any] = {"optimizer": "sgd", "schedule": Cosine(), "learning_rate": 0.1}
    dist_net.fit(alone, INPUTS, LABELS, epochs=4, **options)
    stop_after_two = [lambda result: result.epoch == 2]
    dist_net.fit(looped, INPUTS, LABELS, epochs=4, callbacks=stop_after_two, **options)
    assert len(dist_net.fit(looped, INPUTS, LABELS, epochs=4, initial_epoch=2, **options)) == 2
    np.testing.assert_array_equal(alone.weights, looped.weights)


def test_the_average_of_the_weights_is_what_is_left() -> None:
    models = classifier(), classifier()
    for model, decay in zip(models, (None, 0.99), strict=True):
        dist_net.fit(model, INPUTS, LABELS, epochs=3, average_decay=decay)
    assert not np.array_equal(models[0].weights, models[1].weights)


def bad_calls() -> Iterator[tuple[type[Exception], str, tuple[object, object]]]:
    yield DatasetError, "target 7.*index 2.*0 to 1", (INPUTS[:3], np.array([0, 1, 7]))
    yield RecipeError, "float64.*mean_squared_error", (INPUTS, LABELS / 2)
    yield RecipeError, "int64.*input_dtype=float32", (INPUTS.astype(int), LABELS)
    yield DatasetError, "object.*asarray", (object(), LABELS)


@pytest.mark.parametrize(("error", "words", "data"), list(bad_calls()))
def test_data_that_do_not_fit_are_refused(
    error: type[Exception], words: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(error, match=words):
        dist_net.fit(classifier(), *data)


def column(outputs: Expression, targets: Expression) -> Expression:
    """The squared error of somebody who forgot that outputs are (N, 1)."""
    return square(outputs - astype(targets, np.float32))


def regression(loss: Loss | str = "mse") -> Model:
    return Model(Sequential(Dense(1)), (3,), loss, np.float32)


@pytest.mark.parametrize("loss", ["mse", mean_squared_error, column])
def test_targets_without_the_axis_of_outputs_are_refused_with_the_reshape(loss: Loss | str) -> None:
    with pytest.raises(RecipeError, match=naming("(N,)", "(N, 1)", "targets.reshape(-1, 1)")):
        dist_net.fit(regression(loss), INPUTS, INPUTS[:, 0])


def test_a_loss_needs_a_value_for_each_sample() -> None:
    outputs = INPUTS[:, :1]
    for loss in (column, lambda x, y: mean(column(x, y))):
        with pytest.raises(ShapeError, match=naming("(N, 1)", "(N,)")):
            regression(loss).bind_evaluation(INPUTS, outputs, np.zeros(4, np.float32))
        with pytest.raises(ShapeError, match=naming("(N, 1)", "(N,)")):
            regression(loss).compile_training(2, np.random.default_rng(), None, (np.float32, (1,)))
    flat = regression(lambda x, y: mean(column(x, y), 1))
    assert dist_net.fit(flat, INPUTS, outputs, epochs=1)[0].loss > 0


def test_names_stand_for_activations_losses_and_optimizers() -> None:
    by_name = Model(Sequential([Dense(4, "relu"), Dense(1)]), (3,), "mse", np.float32)
    by_function = Model(Sequential(Dense(4, relu), Dense(1)), (3,), mean_squared_error, np.float32)
    pairs: list[tuple[Model, str | Optimizer]] = [(by_name, "adam"), (by_function, Adam())]
    for model, optimizer in pairs:
        dist_net.fit(model, INPUTS, INPUTS[:, :1], optimizer=optimizer, epochs=1)
    np.testing.assert_array_equal(by_name.weights, by_function.weights)


@pytest.mark.parametrize(
    ("error", "call", "meant"),
    [
        (ParameterError, lambda: Model(Dense(4, "rleu"), (3,), "mse", np.float32), "relu"),
        (ParameterError, lambda: regression("mean_square_error"), "mean_squared_error"),
        (SettingError, lambda: fit_with(optimizer="adm"), "adam"),
        (UnknownOptionError, lambda: fit_with(epoch=3), "epochs"),
        (UnknownOptionError, lambda: fit_with(lr=0.1), "learning_rate"),
        (UnknownOptionError, lambda: fit_with(validation_data=()), "validation"),
        (UnknownOptionError, lambda: Recipe(Dense(10), "digits", (8, 8), epoch=3), "epochs"),
        (UnknownOptionError, lambda: dist_net.train("digits", epoch=3), "epochs"),
        (UnknownOptionError, lambda: dist_net.train("digits", wrokers=3), "workers"),
        (SettingError, lambda: fit_with(optimizer=3), "adam"),
        (SettingError, lambda: fit_with(epochs=2.5), "epochs=2.5"),
        (SettingError, lambda: fit_with(batch_size="32"), "batch_size='32'"),
        (ParameterError, lambda: Sequential(Dense), r"Dense\(10\)"),  # type: ignore[arg-type]
        (ParameterError, lambda: Sequential([Dense(3), relu]), r"Lambda\(relu\)"),  # type: ignore[list-item]
        (ParameterError, lambda: Sequential(Dense(3), "relu"), r"Lambda\(relu\)"),
        (SettingError, lambda: fit_with(validation=0.2), "validation_split=0.2"),
        (DTypeError, lambda: Model(Sequential(Flatten(), Dense(4)), (2, 2)), r"Rescale\(\)"),
        (DTypeError, lambda: Model(Conv2D(4, 3), (2, 2, 1)), r"Rescale\(\)"),
        (DTypeError, lambda: Model(BatchNorm(), (2, 2, 1)), r"Rescale\(\)"),
        (ShapeError, lambda: classifier().require_inputs(INPUTS.tolist()), "float32"),
        (UnknownAttributeError, lambda: Sequential().add(Dense(3)), r"Sequential\(Dense"),
        (UnknownAttributeError, lambda: classifier()(INPUTS), r"model\.predict\(inputs\)"),
        (UnknownAttributeError, lambda: classifier().to("cuda"), "on CPUs"),
        (UnknownOptionError, lambda: dist_net.train(INPUTS, LABELS), r"dist_net\.fit\("),
        (RecipeError, lambda: dist_net.train(classifier()), r"dist_net\.fit\("),
        (SettingError, lambda: dist_net.fit(classifier(), INPUTS), "inputs, targets"),
        (UnknownOptionError, lambda: Dense(3)(INPUTS), r"Model\(network, input_shape\)"),
        (UnknownOptionError, lambda: Sequential(Dense(3))(INPUTS), r"Model\(network"),
        (UnknownOptionError, lambda: Conv2D(4), "'size'; expected Conv2D"),
        (UnknownOptionError, lambda: Model(Dense(3)), r"\(28, 28\), the shape of one sample"),
        (ModelFileError, lambda: classifier().save("a.h5"), "safetensors.*export_model"),
        (ParameterError, lambda: regression("cross_entropy"), "cross_entropy_of_logits"),
        (ShapeError, lambda: Model(Dense(3), 8), r"one sample.*such as \(8,\)"),
        (ShapeError, lambda: Model(Dense(3), (None, 8)), "without None"),
        (ShapeError, lambda: images().require_inputs(CHANNELS_FIRST), r"np\.moveaxis"),
        (DatasetError, lambda: classifier().inputs_of(Sparse()), "its toarray"),
        (DatasetError, lambda: classifier().inputs_of([[1], [2, 3]]), "as many for each"),
        (DatasetError, lambda: trained().evaluate(INPUTS, LABELS[:5]), "5 targets for"),
    ],
)
def test_a_mistake_is_refused_with_what_was_meant(
    error: type[Exception], call: Callable[[], object], meant: str
) -> None:
    with pytest.raises(error, match=meant):
        call()


def fit_with(**options: object) -> object:
    return dist_net.fit(classifier(), INPUTS, LABELS, **options)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_inputs_that_are_no_numbers_are_refused_with_their_place(number: float) -> None:
    inputs = INPUTS.copy()
    inputs[5, 1] = number
    with pytest.raises(DatasetError, match=naming(f"input {number}", "index 5")):
        dist_net.fit(classifier(), inputs, LABELS)
    with pytest.raises(DatasetError, match=naming(f"test input {number}", "index 5")):
        dist_net.fit(classifier(), INPUTS, LABELS, validation=(inputs, LABELS))


@pytest.mark.parametrize(("result", "epochs"), [(True, 1), (np.True_, 1), (1.0, 2), (None, 2)])
def test_training_ends_if_a_callback_returns_true_and_for_nothing_else(
    result: object, epochs: int
) -> None:
    callbacks = [lambda _: np.zeros(2), lambda _: result]
    assert len(fit_with(epochs=2, callbacks=callbacks)) == epochs  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_weights() -> None:
    model = Model(Sequential(Dense(1)), (3,), mean_squared_error, np.float32)
    with (
        np.errstate(all="ignore"),
        pytest.raises(NotFiniteError, match=naming("epoch 1", "learning_rate", "1e+20")),
    ):
        dist_net.fit(model, INPUTS, INPUTS[:, :1], optimizer=SGD(), learning_rate=1e20)
    with pytest.raises(ParameterError, match=naming("dist_net.fit")):
        model.predict(INPUTS)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ShapeError, match=naming("float32[9]", "float32[8]")):
        classifier().weights = np.zeros(9, np.float32)


@pytest.mark.parametrize(
    "option",
    [
        {"learning_rate": "x"},
        {"learning_rate": [0.1]},
        {"clip_norm": "x"},
        {"average_decay": "x"},
        {"seed": -1},
        {"seed": "x"},
        {"threads": 0},
        {"initial_epoch": -1},
        {"schedule": "cosinus"},
        {"callbacks": None},
        {"callbacks": [3]},
    ],
)
def test_an_option_of_the_wrong_type_is_refused_by_its_name(option: dict[str, object]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(BadInputError, match=rf"{name}\W{re.escape(repr(value))}"):
        fit_with(**option)


def test_no_activation_is_the_identity_as_in_keras() -> None:
    assert Model(Sequential(Dense(2, None)), (3,), input_dtype=np.float32).output_shape == (2,)


@pytest.mark.parametrize("activation", [3, lambda _: None])
def test_what_is_no_activation_is_refused(activation: object) -> None:
    with pytest.raises(ParameterError, match="activation"):
        Model(Sequential(Dense(2, activation)), (3,), input_dtype=np.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [3, lambda *_: None])
def test_what_is_no_loss_is_refused(loss: object) -> None:
    with pytest.raises(BadInputError, match="loss"):
        dist_net.fit(regression(loss), INPUTS, INPUTS[:, :1])  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda: Dense(0), lambda: Dense("4"), lambda: Dropout("x")])  # type: ignore[arg-type]
def test_a_layers_number_of_the_wrong_type_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(BadInputError):
        make()


NUMBERS = LABELS[:, np.newaxis] * 7 - 5


@pytest.mark.parametrize("dtype", [np.int8, np.int64])
@pytest.mark.parametrize("outputs", [1, 3])
def test_integers_of_the_outputs_shape_are_numbers_to_predict(outputs: int, dtype: type) -> None:
    targets = NUMBERS.repeat(outputs, 1)
    histories = []
    for given in (targets.astype(dtype), targets.astype(np.float32)):
        model = Model(Sequential(Dense(outputs)), (3,), "mse", np.float32)
        histories.append(dist_net.fit(model, INPUTS, given, validation=(INPUTS, given), epochs=2))
    assert [each.loss for each in histories[0]] == [each.loss for each in histories[1]]
    assert histories[0][-1].accuracy is None


@pytest.mark.parametrize("targets", [NUMBERS[:, 0], NUMBERS[:, 0].astype(np.float32)])
def test_numbers_without_the_axis_of_the_output_are_refused(targets: object) -> None:
    model = Model(Sequential(Dense(1)), (3,), "mse", np.float32)
    with pytest.raises(RecipeError, match=naming("targets.reshape(-1, 1)")):
        dist_net.fit(model, INPUTS, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "error", "remedy"),
    [
        (LABELS[:, np.newaxis], RecipeError, "targets.reshape(-1)"),
        (np.eye(2, dtype=np.int64)[LABELS], RecipeError, "targets.argmax(1)"),
        (np.eye(2, dtype=np.float32)[LABELS], RecipeError, "targets.argmax(1)"),
        (np.array(["no", "yes"])[LABELS], DTypeError, "np.unique(targets, return_inverse=True)"),
        (np.array(["no", "yes"], object)[LABELS], DTypeError, "return_inverse=True"),
        (LABELS == 1, DTypeError, "targets.astype(int)"),
    ],
    ids=["column", "one-hot", "one-hot floats", "strings", "objects", "bools"],
)
def test_targets_that_are_no_class_indices_are_refused_with_the_remedy(
    targets: np.ndarray, error: type[BadInputError], remedy: str
) -> None:
    with pytest.raises(error, match=naming(remedy)):
        dist_net.fit(classifier(), INPUTS, targets)
    with pytest.raises(BadInputError):
        dist_net.fit(classifier(), INPUTS, LABELS, validation=(INPUTS, targets))


def test_what_is_in_memory_is_as_good_as_an_array() -> None:
    given: list[tuple[Any, Any]] = [
        (INPUTS, LABELS),
        (INPUTS.tolist(), LABELS.tolist()),
        ([*INPUTS], [*LABELS]),
        (Framed(INPUTS), Framed(LABELS)),
    ]
    models = [classifier() for _ in given]
    for model, data in zip(models, given, strict=True):
        dist_net.fit(model, *data, epochs=1, validation=data)
        np.testing.assert_array_equal(model.weights, models[0].weights)
        assert model.evaluate(*data) == models[0].evaluate(INPUTS, LABELS)
    integers = classifier().inputs_of([[1, 2, 3]])
    assert integers.dtype == np.float32


@pytest.mark.parametrize(
    ("loss", "end"),
    [
        ("cross_entropy_of_logits", "softmax"),
        ("binary_cross_entropy_of_logits", "sigmoid"),
        ("sparse_categorical_crossentropy", None),
        ("binary_cross_entropy_of_probabilities", None),
    ],
)
def test_outputs_that_do_not_suit_the_loss_warn(loss: str, end: str | None) -> None:
    binary = loss.startswith("binary")
    model = Model(Dense(1 if binary else 2, end), (3,), loss, np.float32)
    targets = LABELS[:, None].astype(np.float32) if binary else LABELS
    with pytest.warns(UserWarning, match="do not suit"):
        dist_net.fit(model, INPUTS, targets, epochs=1, verbose=0)


def test_images_whose_channels_come_first_warn() -> None:
    with pytest.warns(UserWarning, match=r"np\.moveaxis"):
        Model(Sequential(Conv2D(4, 3), Flatten(), Dense(3)), (3, 32, 32), input_dtype=np.float32)


SUMS = INPUTS @ np.array([[1], [2], [3]], np.float32)
BATCHES = [(INPUTS[n : n + 32], SUMS[n : n + 32]) for n in range(0, 200, 32)]


def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
        yield from BATCHES


@pytest.mark.parametrize(
    ("batches", "steps"),
    [(BATCHES, None), (endless, 7), (endless(), 7), (lambda: iter(BATCHES), 7), (BATCHES, 14)],
)
def test_batches_are_trained_on_in_their_order(batches: Any, steps: int | None) -> None:
    """As by SGD in NumPy, also on the last of an iteration, which has 8 samples."""
    model, slope, offset, losses = regression(), np.zeros((3, 1)), 0.0, []
    model.weights = np.zeros(model.layout.size, np.float32)
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.05, "validation": BATCHES}
    history = dist_net.fit(model, batches, steps=steps, epochs=28 // (steps or 7), **options)
    for _ in range(4):
        for x, numbers in BATCHES:
            error = x @ slope + offset - numbers
            losses.append(np.square(error))
            slope, offset = slope - 0.1 * x.T @ error / len(x), offset - 0.1 * error.mean()
    np.testing.assert_allclose(model.predict(np.eye(3)), slope + offset, rtol=1e-4)
    assert history[0].loss == pytest.approx(np.concatenate(losses[: steps or 7]).mean(), rel=1e-4)
    assert history[-1].validation is not None
    assert history[-1].validation.loss == model.evaluate(INPUTS, SUMS)["loss"]


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        (endless, {}, "steps=N"),
        (iter(BATCHES), {"steps": 7}, "exhausted.*function"),
        ([], {"steps": 7}, "exhausted"),
        ([INPUTS], {}, "tuple \\(inputs, targets\\)"),
        ([(INPUTS, SUMS[:5])], {}, "5 targets for 200 inputs"),
        ([(INPUTS, SUMS), (INPUTS, SUMS[:, 0])], {}, "as before"),
        ([(INPUTS[:, :2], SUMS)], {}, "input_shape"),
        (BATCHES, {"batch_size": 8}, "batch_size.*for arrays"),
        (BATCHES, {"workers": 2}, "workers.*for arrays"),
        (INPUTS, {}, "no targets.*DataLoader"),
        (INPUTS, {"targets": SUMS, "steps": 7}, "steps=7"),
    ],
)
def test_unsuitable_batches_are_refused(batches: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        dist_net.fit(regression(), batches, **{"epochs": 2, **options})


def test_a_network_instead_of_a_model_is_refused_with_the_model_to_make() -> None:
    network = Sequential(Dense(2))
    with pytest.raises(SettingError, match=naming("Model(network, (3,), input_dtype=np.float32)")):
        dist_net.fit(network, INPUTS, LABELS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(8, 3, relu),  # type: ignore[arg-type]
        Conv2D(8, relu),  # type: ignore[arg-type]
        Conv2D(8, 3, 1, relu),  # type: ignore[arg-type]
        Conv2D(8, (3, relu)),  # type: ignore[arg-type]
        MaxPool(relu),  # type: ignore[arg-type]
        AveragePool(2, relu),  # type: ignore[arg-type]
        DepthwiseConv2D(3, relu),  # type: ignore[arg-type]
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_activation_in_the_place_of_a_number_is_refused_by_its_name(layer: Layer) -> None:
    with pytest.raises(BadInputError, match=naming("relu")) as caught:
        Model(Sequential(layer), (8, 8, 4), input_dtype=np.float32)
    assert " at 0x" not in str(caught.value)


def test_a_model_and_its_layers_are_shown_as_they_were_made() -> None:
    network = Sequential(Conv2D(8, 3, activation=relu), Residual(Dropout(0.5)), Flatten(), Dense(2))
    layers = (
        "Sequential(Conv2D(filters=8, size=3, activation=relu), Residual(Dropout(rate=0.5)), "
        "Flatten(), Dense(units=2))"
    )
    assert repr(network) == layers
    model = Model(network, (4, 4, 1), "mse", np.float32)
    assert re.search(naming(layers, (4, 4, 1), "mean_squared_error", "float32", 338), repr(model))
