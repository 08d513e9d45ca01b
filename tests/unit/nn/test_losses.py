"""Losses by Keras's names, Huber, label smoothing and weights: by NumPy, and by PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net import Recipe, nn
from dist_net import autodiff as ad
from dist_net.data import Dataset, records
from dist_net.errors import ParameterError
from dist_net.nn.losses import LOSSES, Loss, loss_named
from naming import naming

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(size=(12, 4))
LABELS = RANDOM.integers(0, 4, 12)
ONE_HOT = np.eye(4)[LABELS]
NUMBERS = RANDOM.normal(size=(12, 4)) * 2
BITS = (NUMBERS > 0).astype(float)
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
SIGMOIDS = 1 / (1 + np.exp(-SCORES))
WEIGHTS = RANDOM.uniform(0, 2, 12)


def entropy(targets: Any) -> Any:
    return -(targets * np.log(PROBABILITIES)).sum(1)


def binary(targets: Any) -> Any:
    return -(targets * np.log(SIGMOIDS) + (1 - targets) * np.log(1 - SIGMOIDS)).mean(1)


def huber(delta: float) -> Any:
    distance = abs(SCORES - NUMBERS)
    far = delta * (distance - delta / 2)
    return np.where(distance <= delta, distance**2 / 2, far).mean(1)


Case = tuple[Loss | str, Any, Any, Any, Callable[[Any, Any, Any], Any]]
"""A loss, outputs, targets, the losses by NumPy, and by PyTorch from scores."""

CASES: dict[str, Case] = {
    "sparse": (
        "sparse_categorical_crossentropy",
        PROBABILITIES,
        LABELS,
        entropy(ONE_HOT),
        lambda f, x, y: f.nll_loss(x.log(), y, reduction="none"),
    ),
    "binary": (
        "binary_crossentropy",
        SIGMOIDS,
        BITS,
        binary(BITS),
        lambda f, x, y: f.binary_cross_entropy(x, y, reduction="none").mean(1),
    ),
    "mse": (
        "mse",
        SCORES,
        NUMBERS,
        ((SCORES - NUMBERS) ** 2).mean(1),
        lambda f, x, y: f.mse_loss(x, y, reduction="none").mean(1),
    ),
    "mae": (
        "mae",
        SCORES,
        NUMBERS,
        abs(SCORES - NUMBERS).mean(1),
        lambda f, x, y: f.l1_loss(x, y, reduction="none").mean(1),
    ),
    "huber": (
        "huber",
        SCORES,
        NUMBERS,
        huber(1.0),
        lambda f, x, y: f.huber_loss(x, y, reduction="none").mean(1),
    ),
    "huber of 0.5": (
        nn.Huber(0.5),
        SCORES,
        NUMBERS,
        huber(0.5),
        lambda f, x, y: f.huber_loss(x, y, reduction="none", delta=0.5).mean(1),
    ),
    "smoothed": (
        nn.Weighted("cross_entropy_of_logits", label_smoothing=0.2),
        SCORES,
        LABELS,
        entropy(ONE_HOT * 0.8 + 0.2 / 4),
        lambda f, x, y: f.cross_entropy(x, y, reduction="none", label_smoothing=0.2),
    ),
    "smoothed and weighted by class": (
        nn.Weighted("cross_entropy_of_logits", [1, 2, 3, 4], label_smoothing=0.2),
        SCORES,
        LABELS,
        entropy(ONE_HOT * 0.8 + 0.2 / 4) * (LABELS + 1),
        lambda f, x, y: f.cross_entropy(x, y, reduction="none", label_smoothing=0.2) * (y + 1),
    ),
    "weighted samples": (
        nn.Weighted("cross_entropy_of_logits"),
        SCORES,
        records(target=LABELS, weight=WEIGHTS),
        entropy(ONE_HOT) * WEIGHTS,
        lambda f, x, y: (
            f.cross_entropy(x, y, reduction="none") * type(x)(WEIGHTS.tolist()).to(x.dtype)
        ),
    ),
}


def losses_and_gradient(loss: Loss | str, outputs: Any, targets: Any) -> tuple[Any, Any]:
    x = ad.variable("x", outputs.shape, np.float64)
    y = ad.variable("y", targets.shape, targets.dtype)
    losses = loss_named(loss)(x, y)
    gradient = ad.gradients(ad.mean(losses), [x])
    found = ad.evaluate([losses, *gradient], x=outputs, y=targets)
    return found[0], found[1]


@pytest.mark.parametrize(("loss", "outputs", "targets", "expected", "_"), CASES.values(), ids=CASES)
def test_a_loss_is_its_formula(
    loss: Loss | str, outputs: Any, targets: Any, expected: Any, _: Any
) -> None:
    losses, gradient = losses_and_gradient(loss, outputs, targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    moved = outputs + 1e-6 * (direction := RANDOM.normal(size=outputs.shape))
    after, _ = losses_and_gradient(loss, moved, targets)
    slope = (after.mean() - losses.mean()) / 1e-6
    assert slope == pytest.approx((gradient * direction).sum(), rel=1e-3, abs=1e-6)


ROWS = RANDOM.normal(size=(80, 3)).astype(np.float32)
IS_LARGER = (ROWS[:, 0] > ROWS[:, 1]).astype(np.int64)


@pytest.mark.parametrize(
    ("loss", "activation", "targets"),
    [
        ("sparse_categorical_crossentropy", "softmax", IS_LARGER),
        ("binary_crossentropy", "sigmoid", IS_LARGER[:, None]),
        ("binary_crossentropy", "sigmoid", IS_LARGER[:, None].astype(np.float32)),
        (nn.Weighted("cross_entropy_of_logits", label_smoothing=0.1), None, IS_LARGER),
        (
            nn.Weighted("cross_entropy_of_logits"),
            None,
            records(target=IS_LARGER, weight=np.ones(80, np.float32)),
        ),
    ],
)
def test_a_classifier_of_each_loss_learns_and_reports_its_accuracy(
    loss: Loss | str, activation: str | None, targets: Any
) -> None:
    outputs = 1 if activation == "sigmoid" else 2
    model = nn.Model(nn.Dense(outputs, activation), (3,), loss, np.float32)
    history = dist_net.fit(
        model, ROWS, targets, validation=(ROWS, targets), epochs=30, learning_rate=0.05
    )
    answers = model.predict(ROWS)
    right = (answers[:, 0] > 0.5 if outputs == 1 else answers.argmax(1)) == IS_LARGER
    assert right.mean() > 0.95
    assert history[-1].validation is not None
    assert history[-1].validation.accuracy == pytest.approx(right.mean())
    assert history[-1].accuracy == pytest.approx(right.mean(), abs=0.1)
    assert model.evaluate(ROWS, targets)["accuracy"] == pytest.approx(right.mean())


@pytest.mark.parametrize("loss", [*LOSSES, nn.Huber(0.5), nn.Weighted("mse", ignored=None)])
def test_a_saved_model_has_its_loss(loss: Loss | str) -> None:
    model = nn.Model(nn.Dense(2), (3,), loss, np.float32)
    again = nn.Model.from_json(model.to_json())
    assert again.loss == model.loss


def test_a_cluster_trains_on_weighted_samples() -> None:
    targets = records(target=IS_LARGER, weight=np.ones(80, np.float32))
    loss = nn.Weighted("cross_entropy_of_logits")
    recipe = Recipe(
        nn.Dense(2),
        lambda: Dataset("weighted", ROWS, targets, ROWS, targets),
        (3,),
        loss,
        input_dtype=np.float32,
        epochs=2,
    )
    with dist_net.LocalCluster(recipe, workers=2) as cluster:
        assert cluster.wait()["records"][-1]["accuracy"] > 0


def test_smoothing_of_numbers_is_refused() -> None:
    with pytest.raises(ParameterError, match=naming("label_smoothing=0.1")):
        nn.Weighted("mse", label_smoothing=0.1)


def test_samples_of_numbers_are_weighted_too() -> None:
    def cosine(outputs: ad.Expression, targets: ad.Expression) -> ad.Expression:
        return -ad.sum(outputs * targets, 1)

    targets = records(target=NUMBERS, weight=WEIGHTS)
    losses, _ = losses_and_gradient(nn.Weighted(cosine, ignored=None), SCORES, targets)
    np.testing.assert_allclose(losses, -(SCORES * NUMBERS).sum(1) * WEIGHTS)
