"""What targets mean: valid labels, labels that count, and the accuracy that follows from them."""

from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net.errors import BadInputError, DatasetError, DTypeError, ParameterError
from dist_net.nn import Conv2D, Dense, Embedding, Layer, Model, Sequential, Weighted
from naming import naming

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(64, 3)).astype(np.float32)
CLASSES = (ROWS[:, 0] > ROWS[:, 1]).astype(np.int64)
TOKENS = RANDOM.integers(0, 5, (64, 4))
IMAGES = RANDOM.normal(size=(16, 4, 4, 3)).astype(np.float32)
LABEL, BINARY = "cross_entropy_of_logits", "binary_cross_entropy_of_logits"


def ignoring(labels: Any, ignored: int) -> Any:
    """A copy whose every third label is ignored."""
    changed = labels.copy()
    changed.flat[::3] = ignored
    return changed


CASES: dict[str, tuple[Layer, Any, Any, Any]] = {
    "classes": (Dense(2), ROWS, CLASSES, LABEL),
    "classes, some ignored": (Dense(2), ROWS, ignoring(CLASSES, -1), Weighted(LABEL)),
    "a class that is ignored": (Dense(2), ROWS, CLASSES, Weighted(LABEL, ignored=0)),
    "one output": (Dense(1), ROWS, CLASSES[:, None], BINARY),
    "one output, floats": (Dense(1), ROWS, CLASSES[:, None].astype(np.float32), BINARY),
    "one output, some ignored": (
        Dense(1),
        ROWS,
        ignoring(CLASSES[:, None], 9),
        Weighted(BINARY, ignored=9),
    ),
    "several outputs": (Dense(3), ROWS, (ROWS > 0.5).astype(np.uint8), BINARY),
    "tokens": (Sequential(Embedding(5, 3), Dense(5)), TOKENS, (TOKENS + 1) % 5, LABEL),
    "tokens, some ignored": (
        Sequential(Embedding(5, 3), Dense(5)),
        TOKENS,
        ignoring(TOKENS, -1),
        Weighted(LABEL),
    ),
    "pixels": (Conv2D(2, 1), IMAGES, (IMAGES[..., 0] > 0).astype(np.uint8), LABEL),
    "pixels, some ignored": (
        Conv2D(2, 1),
        IMAGES,
        ignoring((IMAGES[..., 0] > 0).astype(np.uint8), 255),
        Weighted(LABEL, ignored=255),
    ),
}


@pytest.mark.parametrize(("network", "inputs", "targets", "loss"), CASES.values(), ids=CASES)
def test_accuracy_is_the_share_of_the_labels_that_count(
    network: Layer, inputs: Any, targets: Any, loss: Any
) -> None:
    model = Model(network, inputs.shape[1:], loss, inputs.dtype)
    (epoch,) = dist_net.fit(
        model,
        inputs,
        targets,
        validation=(inputs, targets),
        epochs=1,
        batch_size=len(inputs),
        learning_rate=1e-9,
    )
    outputs = model.predict(inputs)
    answers = outputs > 0 if BINARY in str(getattr(loss, "loss", loss)) else outputs.argmax(-1)
    counted = targets != getattr(loss, "ignored", None)
    expected = pytest.approx(np.mean((answers == targets)[counted]))
    assert model.evaluate(inputs, targets)["accuracy"] == expected
    assert epoch.validation is not None
    assert epoch.validation.accuracy == expected
    assert epoch.validation.labels.size == (counted.sum() if targets.ndim == 1 else 0)
    # The epoch is one minibatch, before its update; its sum of samples is a whole number.
    assert epoch.accuracy == pytest.approx(
        np.mean((answers == targets)[counted]), abs=1 / len(inputs)
    )


@pytest.mark.parametrize(("network", "inputs", "targets", "loss"), CASES.values(), ids=CASES)
def test_fit_and_evaluate_refuse_the_same_labels_in_the_same_words(
    network: Layer, inputs: Any, targets: Any, loss: Any
) -> None:
    model = Model(network, inputs.shape[1:], loss, inputs.dtype)
    dist_net.fit(model, inputs, targets, epochs=1)
    bad = targets.copy()
    bad[5] = 77
    for refused in (lambda: dist_net.fit(model, inputs, bad), lambda: model.evaluate(inputs, bad)):
        with pytest.raises(
            DatasetError, match=naming(f"target {bad[5].flat[0]}", "index 5", "0 to")
        ):
            refused()


def test_numbers_have_no_accuracy() -> None:
    model = Model(Dense(2), (3,), "mse", np.float32)
    (epoch,) = dist_net.fit(model, ROWS, ROWS[:, :2], validation=(ROWS, ROWS[:, :2]), epochs=1)
    assert epoch.validation is not None
    assert epoch.accuracy is epoch.validation.accuracy is None
    assert model.evaluate(ROWS, ROWS[:, :2]).keys() == {"loss"}


def test_a_small_loss_keeps_its_digits() -> None:
    model = Model(Dense(1), (3,), "mse", np.float32)
    targets = ROWS[:, :1] * 1e-4
    model.weights = np.zeros(4, np.float32)
    (epoch,) = dist_net.fit(
        model, ROWS, targets, validation=(ROWS, targets), epochs=1, learning_rate=1e-9
    )
    assert epoch.validation is not None
    assert str(epoch.validation) == f"test loss {np.mean(targets**2):#.4g}"


@pytest.mark.parametrize("weights", [[1, 3], {1: 3, 0: 1}, np.array([1.0, 3.0]), (1.0, 3.0)])
@pytest.mark.parametrize(
    ("loss", "targets"),
    [(LABEL, CLASSES), (BINARY, CLASSES[:, None]), (BINARY, CLASSES[:, None].astype(np.float32))],
)
def test_class_weights_are_a_sequence_or_a_dict(weights: Any, loss: str, targets: Any) -> None:
    outputs = 2 if loss == LABEL else 1
    losses = []
    for each in (Weighted(loss, weights), Weighted(loss, [1.0, 1.0]), loss):
        model = Model(Dense(outputs), (3,), each, np.float32)
        model.weights = np.zeros(model.layout.size, np.float32)
        losses.append(model.evaluate(ROWS, targets)["loss"])
    weighted, plain, without = losses
    assert plain == pytest.approx(without)
    assert weighted == pytest.approx(plain * (1 + 2 * CLASSES.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "weights", [{1: 3.0}, {"cat": 1.0}, [1.0, -1.0], [1.0, np.nan], ["a"], 3.0]
)
def test_class_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(ParameterError, match=naming("class_weights", "0, 1, 2")):
        Weighted(LABEL, weights)


def test_class_weights_for_other_classes_or_for_numbers_are_refused() -> None:
    for loss, targets, error in (
        (Weighted(LABEL, [1.0]), CLASSES, ParameterError),
        (Weighted("mse", [1.0, 2.0]), ROWS[:, :2], DTypeError),
    ):
        model = Model(Dense(2), (3,), loss, np.float32)
        model.weights = np.zeros(model.layout.size, np.float32)
        with pytest.raises(error, match="class_weights"):
            model.evaluate(ROWS, targets)
        with pytest.raises(BadInputError, match="class_weights"):
            dist_net.fit(model, ROWS, targets)
