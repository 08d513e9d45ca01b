"""Keras's callbacks by name: when training ends, and which weights are kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dist_net
from dist_net import EarlyStopping, ModelCheckpoint
from dist_net.errors import SettingError
from dist_net.nn import Dense, Model
from dist_net.training.run.callbacks import Callback, EpochResult
from dist_net.training.run.evaluation import Evaluation
from naming import naming

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(40, 3)).astype(np.float32)
LABELS = (INPUTS[:, 0] > INPUTS[:, 1]).astype(np.int64)


def classifier() -> Model:
    return Model(Dense(2), (3,), input_dtype=np.float32)


def diverging(model: Model, callbacks: list[Any], labels: NDArray[np.int64] = LABELS) -> Any:
    """The history of a training with a learning rate that is far too large."""
    return dist_net.fit(
        model,
        INPUTS,
        labels,
        validation=(INPUTS, labels),
        optimizer="sgd",
        learning_rate=200.0,
        epochs=5,
        callbacks=callbacks,
    )


def losses(*values: float) -> list[EpochResult]:
    """The results of epochs with these losses of validation."""
    nothing = np.empty(0, np.intp)
    return [
        EpochResult(number, 0.0, None, Evaluation(value, 1, 2, nothing, nothing))
        for number, value in enumerate(values, 1)
    ]


def ended_after(callback: EarlyStopping, results: list[EpochResult]) -> int | None:
    return next((each.epoch for each in results if callback(each)), None)


@pytest.mark.parametrize(
    ("patience", "min_delta", "epoch"),
    [(0, 0.0, 3), (1, 0.0, 3), (2, 0.0, 6), (3, 0.0, None), (2, 0.2, 4)],
)
def test_training_ends_after_as_many_epochs_without_improvement(
    patience: int, min_delta: float, epoch: int | None
) -> None:
    results = losses(2.0, 1.0, 1.0, 0.9, 0.9, 1.5)
    callback = EarlyStopping(patience=patience, min_delta=min_delta)
    assert ended_after(callback, results) == epoch


def test_an_accuracy_improves_when_it_rises() -> None:
    results = [EpochResult(number, 0.0, number / 10) for number in range(1, 5)]
    assert ended_after(EarlyStopping("accuracy"), results) is None
    assert ended_after(EarlyStopping("loss"), results) == 2


def test_the_best_weights_are_restored_also_if_the_epochs_run_out() -> None:
    labels = RANDOM.integers(0, 2, len(INPUTS))
    for patience in (1, 50):
        model = classifier()
        dist_net.fit(model, INPUTS, labels, epochs=3, learning_rate=0.1)
        stopping = EarlyStopping(patience=patience, restore_best_weights=True)
        history = diverging(model, [stopping], labels)
        found = [each.validation.loss for each in history if each.validation]
        assert found[-1] > min(found)
        assert model.evaluate(INPUTS, labels)["loss"] == pytest.approx(min(found), rel=1e-5)


def test_training_goes_on_from_its_own_weights_until_the_best_are_restored() -> None:
    histories = []
    for restores in (False, True):
        stopping = EarlyStopping(patience=9, restore_best_weights=restores)
        history = diverging(classifier(), [stopping])
        histories.append([each.loss for each in history])
    assert histories[0] == histories[1]


def test_the_best_epoch_is_saved_or_each_under_a_name_of_its_own(tmp_path: Path) -> None:
    model = classifier()
    best = tmp_path / "best.safetensors"
    each = tmp_path / "{epoch}-{loss:.0f}.safetensors"
    saved: list[float] = []

    def remember(_: EpochResult) -> None:
        saved.append(Model.load(best).evaluate(INPUTS, LABELS)["loss"])

    history = diverging(
        model, [ModelCheckpoint(best, save_best_only=True), ModelCheckpoint(each), remember]
    )
    found = [result.validation.loss for result in history if result.validation]
    assert saved == pytest.approx(np.minimum.accumulate(found), rel=1e-5)
    names = {f"{result.epoch}-{result.loss:.0f}.safetensors" for result in history}
    assert {path.name for path in tmp_path.iterdir()} == {"best.safetensors", *names}


def test_a_callback_can_be_used_again() -> None:
    stopping = EarlyStopping("loss", patience=1)
    for _ in range(2):
        history = dist_net.fit(classifier(), INPUTS, LABELS, epochs=4, callbacks=[stopping])
        assert len(history) == 4


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (EarlyStopping(), naming("'val_loss'", "loss", "accuracy", "validation")),
        (EarlyStopping("f1"), naming("'f1'")),
        (ModelCheckpoint("x", "val_accuracy", save_best_only=True), naming("'val_accuracy'")),
    ],
)
def test_a_metric_that_there_is_not_is_refused(callback: Callback, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        dist_net.fit(classifier(), INPUTS, LABELS, callbacks=[callback])


def test_a_model_in_other_processes_is_not_saved() -> None:
    with pytest.raises(SettingError, match=naming("dist_net.fit", "keeps_best=True")):
        ModelCheckpoint("x")(losses(1.0)[0])
