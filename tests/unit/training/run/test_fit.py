"""What a notebook sees of ``fit``: progress, history, weights."""

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dist_net
from dist_net import ReduceLROnPlateau
from dist_net.errors import DatasetError, RecipeError, SettingError
from dist_net.nn import Conv2D, Dense, Embedding, Model, Sequential, Weighted
from dist_net.nn.losses import Loss
from dist_net.optim import SGD
from dist_net.processes.terminal import bar_on, plain_console
from dist_net.training.run.callbacks import EpochResult, History
from dist_net.training.run.evaluation import Evaluation
from dist_net.training.worker.local_steps import LocalSteps
from naming import naming

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(60, 4)).astype(np.float32)
LABELS = ROWS[:, :3].argmax(1)
NUMBERS = ROWS @ RANDOM.normal(size=(4, 2)).astype(np.float32)


def classifier(loss: Loss | str = "cross_entropy_of_logits", units: int = 3) -> Model:
    return Model(Dense(units), (4,), loss, np.float32)


def test_each_epoch_has_a_line_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    dist_net.fit(classifier(), ROWS, LABELS, validation_split=0.2, epochs=3, metrics=["accuracy"])
    printed = capsys.readouterr()
    assert printed.out == ""
    figures = r"loss [\d.]+, accuracy [\d.]+, val_loss [\d.]+, val_accuracy [\d.]+"
    lines = printed.err.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(rf"epoch \d/3: {figures}", line) for line in lines)


def test_verbose_0_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    dist_net.fit(classifier(), ROWS, LABELS, epochs=2, verbose=0)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SettingError, match=naming("verbose=3")):
        dist_net.fit(classifier(), ROWS, LABELS, verbose=3)


def test_a_terminal_has_a_bar_and_a_notebook_has_none() -> None:
    shown = []
    for is_terminal, is_notebook in ((True, False), (True, True), (False, False)):
        console = plain_console(quiet=True)
        console._force_terminal, console.is_jupyter = is_terminal, is_notebook
        shown.append(not bar_on(console).disable)
    assert shown == [True, False, False]


def test_a_history_is_short_and_has_metrics_by_name() -> None:
    history = dist_net.fit(
        classifier(), ROWS, LABELS, validation=(ROWS, LABELS), epochs=8, verbose=0
    )
    assert re.fullmatch(r"History\(8 epochs: loss [\d.]+, .*val_accuracy [\d.]+\)", repr(history))
    assert len(repr(list(history))) < 8 * 300
    assert history.history.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history.history["loss"] == [each.loss for each in history]
    assert repr(History()) == "History(0 epochs)"
    assert History().history == {}


def test_a_history_is_drawn_as_one_picture_for_each_metric(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    history = dist_net.fit(
        Model(Dense(2), (4,), "mse", np.float32),
        ROWS,
        NUMBERS,
        validation_split=0.5,
        metrics=["mae"],
        epochs=4,
        verbose=0,
    )
    figure: Any = history.plot()
    assert [axes.get_title() for axes in figure.axes] == ["loss", "mae"]
    for axes, name in zip(figure.axes, ("loss", "mae"), strict=True):
        lines = {line.get_label(): line.get_data() for line in axes.lines}
        for label, key in (("train", name), ("validation", f"val_{name}")):
            np.testing.assert_allclose(lines[label], ([1, 2, 3, 4], history.history[key]))
    figure.savefig(tmp_path / "history.png")
    with Image.open(tmp_path / "history.png") as image:
        assert image.width > image.height
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_last_share_of_the_arrays_is_split_off_as_in_keras() -> None:
    split, given = classifier(), classifier()
    histories = [
        dist_net.fit(split, ROWS, LABELS, validation_split=0.25, epochs=2),
        dist_net.fit(given, ROWS[:45], LABELS[:45], validation=(ROWS[45:], LABELS[45:]), epochs=2),
    ]
    np.testing.assert_array_equal(split.weights, given.weights)
    assert histories[0].history == histories[1].history
    for share in (1.0, -0.1, "x"):
        with pytest.raises(SettingError, match="validation_split"):
            dist_net.fit(classifier(), ROWS, LABELS, validation_split=share)  # type: ignore[arg-type]
    longer = np.ones(len(LABELS) + 1)
    with pytest.raises(SettingError, match="same length"):
        dist_net.fit(classifier(), ROWS, LABELS, validation_split=0.2, sample_weight=longer)


SAMPLE_WEIGHTS = RANDOM.uniform(0, 3, 60)
CLASS_WEIGHTS = {0: 2.0, 2: 0.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "sample_weight": {"sample_weight": SAMPLE_WEIGHTS},
    "class_weight": {"class_weight": CLASS_WEIGHTS},
    "both": {"sample_weight": SAMPLE_WEIGHTS.tolist(), "class_weight": CLASS_WEIGHTS},
}


def weights_of(options: dict[str, Any]) -> Any:
    weights = np.array(options.get("sample_weight", np.ones(60)))
    by_class = options.get("class_weight", {})
    return weights * [by_class.get(label, 1.0) for label in LABELS.tolist()]


def step(options: dict[str, Any], rate: float = 0.1) -> tuple[Any, Any, EpochResult]:
    """The weights before and after one step on all rows, and the result."""
    model = classifier()
    model.weights = before = RANDOM.normal(size=15).astype(np.float32)
    (result,) = dist_net.fit(
        model,
        ROWS,
        LABELS,
        epochs=1,
        batch_size=60,
        optimizer="sgd",
        learning_rate=rate,
        verbose=0,
        **options,
    )
    return before, model.weights, result


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_multiply_the_losses_of_samples(options: dict[str, Any]) -> None:
    before, after, result = step(options)
    weights = weights_of(options)
    scores = ROWS @ before[:12].reshape(4, 3) + before[12:]
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    losses = -np.log(chances[np.arange(60), LABELS])
    slopes = (chances - np.eye(3)[LABELS]) * weights[:, None] / 60
    gradient = np.concatenate([(ROWS.T @ slopes).ravel(), slopes.sum(0)])
    assert result.loss == pytest.approx(np.mean(losses * weights), rel=1e-5)
    assert result.accuracy == pytest.approx(np.mean(scores.argmax(1) == LABELS))
    np.testing.assert_allclose(after, before - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_weights_count_neither_in_the_validation_nor_in_a_part_that_was_split_off() -> None:
    histories = [
        dist_net.fit(
            classifier(), ROWS, LABELS, validation_split=0.5, learning_rate=1e-9, epochs=1, **each
        )
        for each in ({}, *OPTIONS.values())
    ]
    plain = histories[0][0].validation
    assert plain is not None
    for history in histories[1:]:
        validation = history[0].validation
        assert validation is not None
        assert validation.loss == pytest.approx(plain.loss, rel=1e-5)
        assert validation.accuracy == plain.accuracy


def test_class_weights_are_those_of_weighted_also_for_tokens_and_binary_labels() -> None:
    tokens = RANDOM.integers(0, 3, (20, 5))
    pixels = RANDOM.normal(size=(9, 2, 2, 1)).astype(np.float32)
    cases: list[tuple[Any, Any, Any, str]] = [
        (Sequential(Embedding(3, 2), Dense(3)), tokens, tokens, "cross_entropy_of_logits"),
        (
            Conv2D(1, 1),
            pixels,
            (pixels > 0).astype(np.float32),
            "binary_cross_entropy_of_logits",
        ),
    ]
    for network, inputs, targets, loss in cases:
        given = [1.0, 3.0, 0.5] if targets is tokens else [1.0, 3.0]
        by_option = Model(network, inputs.shape[1:], loss, inputs.dtype)
        by_loss = Model(network, inputs.shape[1:], Weighted(loss, given), inputs.dtype)
        dist_net.fit(by_option, inputs, targets, epochs=2, class_weight=dict(enumerate(given)))
        dist_net.fit(by_loss, inputs, targets, epochs=2)
        assert by_option.weights == pytest.approx(by_loss.weights, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_weight": {3: 1.0}}, naming("class_weight={3: 1.0}", "below 3")),
        ({"class_weight": {0: -1.0}}, "class_weights"),
        ({"sample_weight": np.ones(59)}, naming("sample_weight", "60")),
        ({"sample_weight": np.full(60, np.nan)}, "sample_weight"),
        ({"sample_weight": np.full(60, np.inf)}, "weight inf"),
        ({"metrics": ["mae"]}, naming("'mae'", "top_2_accuracy")),
        ({"metrics": ["top_3_accuracy"]}, naming("top_3_accuracy", "top_2_accuracy")),
        ({"metrics": ["f1"]}, naming("'f1'", "accuracy")),
    ],
)
def test_weights_and_metrics_that_do_not_suit_are_refused(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(dist_net.errors.BadInputError, match=words):
        dist_net.fit(classifier(), ROWS, LABELS, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused_with_weights_too(
    options: dict[str, Any], label: int
) -> None:
    labels = LABELS.copy()
    labels[7] = label
    with pytest.raises(DatasetError, match=naming(f"target {label}", "index 7", "0 to 2")):
        dist_net.fit(classifier(), ROWS, labels, **options)
    with pytest.raises(DatasetError, match=naming(f"target {label}", "index 7", "0 to 2")):
        dist_net.fit(classifier(), ROWS, LABELS, validation=(ROWS, labels), **options)


# Metrics


def test_metrics_are_of_the_weights_after_the_epoch_on_both_parts() -> None:
    def precision(outputs: Any, labels: Any) -> float:
        return float(np.mean(labels[outputs.argmax(1) == 1] == 1))

    model = classifier()
    history = dist_net.fit(
        model,
        ROWS,
        LABELS,
        validation_split=0.5,
        metrics=["accuracy", "top_2_accuracy", precision],
        learning_rate=0.1,
        epochs=5,
    )
    outputs = model.predict(ROWS)
    is_top = (np.argsort(-outputs)[:, :2] == LABELS[:, None]).any(1)
    for prefix, part in (("", slice(30)), ("val_", slice(30, 60))):
        figures = history[-1].metrics
        assert figures[f"{prefix}top_2_accuracy"] == pytest.approx(is_top[part].mean())
        expected = precision(outputs[part], LABELS[part])
        assert figures[f"{prefix}precision"] == pytest.approx(expected)


# A learning rate that falls


def rates_after(plateau: ReduceLROnPlateau, losses: list[float], rate: float = 1.0) -> list[float]:
    """The learning rates of the epochs that follow those with these losses of validation."""
    nothing = np.empty(0, np.intp)
    rates: list[float] = []
    rule = SGD().start(1)
    steps = LocalSteps(lambda *_: None, rule, 1, lambda _: rate)  # type: ignore[arg-type]
    for epoch, loss in enumerate(losses, 1):
        evaluation = Evaluation(loss, 1, 2, nothing, nothing)
        steps.learning_rate = rate * steps.rate_factor
        plateau(EpochResult(epoch, 0.0, None, evaluation, steps=steps))
        rates.append(rate * steps.rate_factor)
    return rates


LOSSES = [2.0, 1.0, 1.0, 1.1, 0.99995, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95]


def test_a_plateau_lowers_the_rate_down_to_its_limit() -> None:
    plateau = ReduceLROnPlateau(factor=0.5, patience=2, min_lr=0.2)
    assert rates_after(plateau, LOSSES) == pytest.approx(
        [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]
    )
    assert rates_after(plateau, LOSSES[:3]) == [1, 1, 1]  # the next call of fit begins anew


def test_fit_steps_by_the_lowered_rate() -> None:
    """The loss of training must fall by 1e9 for a gain: the rate falls after each epoch."""
    plateau = ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    alone, together = classifier(), classifier()
    history = dist_net.fit(
        together, ROWS, LABELS, epochs=3, optimizer="sgd", learning_rate=0.1, callbacks=[plateau]
    )
    assert len(history) == 3
    for epoch, rate in enumerate([0.1, 0.1, 0.01]):
        options: dict[str, Any] = {"epochs": epoch + 1, "initial_epoch": epoch}
        dist_net.fit(alone, ROWS, LABELS, optimizer="sgd", learning_rate=rate, **options)
    assert together.weights == pytest.approx(alone.weights, rel=1e-5)


def test_a_plateau_refuses_a_cluster_and_names_what_to_use_there() -> None:
    with pytest.raises(SettingError, match=naming("ReduceLROnPlateau", "schedule")):
        ReduceLROnPlateau("loss")(EpochResult(1, 0.5, None))


# Inputs of another dtype


def test_floats_of_another_precision_and_bools_are_converted() -> None:
    models = [classifier() for _ in range(3)]
    for model, dtype in zip(models, (np.float32, np.float64, np.float16), strict=True):
        rows = ROWS.astype(np.float16).astype(dtype)
        dist_net.fit(model, rows, LABELS, validation=(rows, LABELS), epochs=2)
        np.testing.assert_array_equal(model.weights, models[0].weights)
        np.testing.assert_array_equal(
            model.predict(rows), models[0].predict(rows.astype(np.float32))
        )
    bits = ROWS > 0
    by_bits, by_numbers = classifier(), classifier()
    dist_net.fit(by_bits, bits, LABELS, epochs=2)
    dist_net.fit(by_numbers, bits.astype(np.float32), LABELS, epochs=2)
    np.testing.assert_array_equal(by_bits.weights, by_numbers.weights)


def test_integers_for_a_model_of_floats_and_floats_too_large_are_refused() -> None:
    with pytest.raises(RecipeError, match=naming("int64", "input_dtype=float32")):
        dist_net.fit(classifier(), ROWS.astype(int), LABELS)
    large = ROWS.astype(np.float64)
    large[3, 1] = 1e300
    with pytest.raises(DatasetError, match=naming("input inf", "index 3")):
        dist_net.fit(classifier(), large, LABELS)
