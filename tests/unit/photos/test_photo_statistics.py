"""Intervals, temperatures, thresholds and the calibration error, on answers of known truth."""

import numpy as np
import pytest

from dist_net.nn.inference import softmax
from dist_net.photos.photo_statistics import (
    calibrate,
    calibration_error,
    lower_bounds,
    out_of_fold_interval,
    temperature_of,
    threshold_of,
    wilson_interval,
)


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
    lower = probabilities.max(1) >= found.threshold * 0.95
    assert is_right[lower].mean() < 0.9


def test_equal_probabilities_are_answered_together_or_not_at_all():
    confidence = np.repeat([0.9, 0.6], 200).astype(np.float32)
    probabilities = np.column_stack([confidence, 1 - confidence])
    targets = np.concatenate([np.zeros(200, int), np.arange(200) % 2])
    assert threshold_of(probabilities, targets, 0.9) == pytest.approx(0.9)


def test_the_threshold_is_one_that_the_images_prove():
    probabilities = np.tile(np.array([0.8, 0.2], np.float32), (60, 1))
    right = np.zeros(60, int)
    assert threshold_of(probabilities, right, 0.95) == pytest.approx(0.8)
    assert threshold_of(probabilities[:40], right[:40], 0.95) == 0.95  # 40 of 40 prove 93.7 %


def test_intervals_agree_with_published_values():
    # Newcombe 1998, table I, Wilson's method.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)


def test_a_one_sided_bound_is_that_of_a_two_sided_interval_of_90_percent():
    bound = lower_bounds(np.array([40]), np.array([40]))
    assert bound == pytest.approx(40 / (40 + 1.6449**2), abs=1e-4)


def test_an_interval_out_of_fold_is_wider_around_the_same_share():
    plain, corrected = wilson_interval(90, 120), out_of_fold_interval(90, 120, 10)
    assert corrected.low < plain.low
    assert corrected.high > plain.high


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.75, 0.25]] * 4, np.float32)
    assert calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.5)
