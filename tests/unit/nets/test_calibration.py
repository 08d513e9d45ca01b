"""Temperatures, thresholds and the calibration error, on answers whose truth is known."""

import numpy as np
import pytest

from dist_net.nets.calibration import (
    calibrate,
    calibration_error,
    temperature_of,
    threshold_of,
)
from dist_net.nn.inference import softmax


def drawn(samples=4000, classes=5, seed=0):
    """Logits that say the truth: each target is drawn from its row's softmax."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (samples, classes)).astype(np.float32)
    edges = softmax(logits).cumsum(1)
    targets = (generator.random((samples, 1)) > edges).sum(1).clip(max=classes - 1)
    return logits, targets


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_what_made_a_net_too_sure_or_too_unsure(factor):
    logits, targets = drawn()
    assert temperature_of(logits * np.float32(factor), targets) == pytest.approx(factor, rel=0.05)


def test_calibrated_probabilities_are_as_often_right_as_they_say():
    logits, targets = drawn()
    sure = logits * np.float32(4)
    temperature = temperature_of(sure, targets)
    before = calibration_error(softmax(sure), targets)
    after = calibration_error(softmax(sure / np.float32(temperature)), targets)
    assert before > 0.1
    assert after < 0.03


def test_a_net_that_is_always_right_is_not_made_infinitely_sure():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    targets = np.array([0, 1, 2, 0, 1])
    assert 0.05 < temperature_of(logits, targets) < 1


def test_logits_that_say_nothing_keep_a_finite_temperature():
    temperature = temperature_of(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0]))
    assert np.isfinite(temperature)


def test_of_the_answers_above_the_threshold_the_wanted_share_is_right():
    logits, targets = drawn()
    found = calibrate(logits, targets, precision=0.9)
    probabilities = softmax(logits / np.float32(found.temperature))
    is_answered = probabilities.max(1) >= found.threshold
    is_right = probabilities.argmax(1) == targets
    assert is_right[is_answered].mean() >= 0.9
    lower = probabilities.max(1) >= found.threshold * 0.98
    assert is_right[lower].mean() < 0.9


def test_equal_probabilities_are_answered_together_or_not_at_all():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], np.float32)
    assert threshold_of(probabilities, np.array([0, 0, 1]), 0.9) == pytest.approx(0.9)


def test_a_net_that_is_always_right_still_knows_when_it_has_never_been_so_unsure():
    probabilities = np.array([[0.99, 0.01], [0.8, 0.2], [0.1, 0.9]], np.float32)
    assert threshold_of(probabilities, np.array([0, 0, 1]), 0.95) == pytest.approx(0.8)


def test_where_no_threshold_is_high_enough_nothing_is_known():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3]], np.float32)
    assert threshold_of(probabilities, np.array([1, 1]), 0.5) == 1.0


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.75, 0.25]] * 4, np.float32)
    assert calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.5)
