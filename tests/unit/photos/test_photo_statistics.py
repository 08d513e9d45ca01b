"""Intervals, temperatures, thresholds and the calibration error, on answers of known truth."""

import numpy as np
import pytest

from dist_net.errors import SettingError
from dist_net.images.labels import Calibration, lowest_threshold
from dist_net.nn.inference import softmax
from dist_net.photos.photo_statistics import (
    JudgedImages,
    calibration_error,
    effective_count,
    effective_counts,
    lower_bound,
    proven_precisions,
    temperature_of,
    wilson_interval,
)
from naming import naming


def drawn(samples=4000, classes=5, seed=0):
    """Logits that say the truth: each target is drawn from its row's softmax."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (samples, classes)).astype(np.float32)
    edges = softmax(logits).cumsum(1)
    targets = (generator.random((samples, 1)) > edges).sum(1).clip(max=classes - 1)
    return logits, targets


def judged(logits, targets, groups=None, folds=None):
    groups = np.arange(len(targets)) if groups is None else groups
    return JudgedImages((), targets, logits, groups, folds)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_what_made_a_net_too_sure_or_too_unsure(factor):
    logits, targets = drawn()
    assert temperature_of(logits * np.float32(factor), targets, 4000) == pytest.approx(
        factor, rel=0.05
    )


def test_calibrated_probabilities_are_as_often_right_as_they_say():
    logits, targets = drawn()
    sure = logits * np.float32(4)
    temperature = temperature_of(sure, targets, 4000)
    before = calibration_error(softmax(sure), targets)
    after = calibration_error(softmax(sure / np.float32(temperature)), targets)
    assert before > 0.1
    assert after < 0.03


def test_a_net_that_is_always_right_is_not_made_infinitely_sure():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    targets = np.array([0, 1, 2, 0, 1])
    assert 0.05 < temperature_of(logits, targets, 5) < temperature_of(logits, targets, 2) < 1


def test_logits_that_say_nothing_keep_a_finite_temperature():
    temperature = temperature_of(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0]), 4)
    assert np.isfinite(temperature)


def test_of_the_answers_above_the_threshold_the_wanted_share_is_right():
    logits, targets = drawn()
    found = judged(logits, targets).calibrate(0.9)
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
    proven = proven_precisions(probabilities, targets, np.arange(400))
    assert lowest_threshold(proven, 0.9) == pytest.approx(0.9)


def test_the_threshold_is_one_that_the_images_prove():
    probabilities = np.tile(np.array([0.8, 0.2], np.float32), (60, 1))
    right = np.zeros(60, int)
    each, pairs = np.arange(60), np.arange(60) // 2
    assert lowest_threshold(proven_precisions(probabilities, right, each), 0.95) == pytest.approx(
        0.8
    )
    for fewer in ((probabilities[:40], right[:40], each[:40]), (probabilities, right, pairs)):
        assert lowest_threshold(proven_precisions(*fewer), 0.95) is None  # 40 prove 93.7 %


@pytest.mark.parametrize("seed", range(3))
def test_any_precision_can_be_chosen_later_as_if_it_had_been_trained_for(seed):
    logits, targets = drawn(3000, seed=seed)
    groups = np.random.default_rng(seed).integers(0, 2000, 3000)
    of_images = judged(logits, targets, groups)
    found = of_images.calibrate(0.95)
    probabilities = of_images.probabilities(found)
    is_right = probabilities.argmax(1) == targets
    for precision in (0.5, 0.75, 0.9):
        trained = of_images.calibrate(precision)
        assert found.promising(precision) == trained
        assert trained.is_proven
        is_answered = probabilities.max(1) >= trained.threshold
        independent = effective_count(groups[is_answered])
        wrong = independent * (1 - is_right[is_answered].mean())
        assert lower_bound(independent, wrong) >= precision
    thresholds, precisions = zip(*found.proven, strict=True)
    assert all(np.diff(thresholds) > 0)
    assert all(np.diff(precisions) > 0)


FOLDERS = 200


@pytest.mark.parametrize(("truth", "frames"), [("constant", 1), ("falling", 1), ("falling", 4)])
def test_few_folders_prove_a_precision_that_is_not_reached(truth, frames):
    """At a chance of 5 %, more than 17 of 200 would be wrong once in 100 times."""
    generator = np.random.default_rng(0)
    wrongly = answering = 0
    for _ in range(FOLDERS):
        middle, spread = (2.5, 2.5) if truth == "falling" else (np.log(0.945 / 0.055), 0.1)
        logits = generator.normal(middle, spread, 400)
        share = 1 / (1 + np.exp(-logits)) if truth == "falling" else np.full(400, 0.945)
        is_right = np.repeat(generator.random(400) < share, frames)
        rows = np.column_stack([logits, np.zeros(400)]).astype(np.float32).repeat(frames, 0)
        rows[:, 0] += generator.normal(0, 0.1, len(rows))
        groups = np.arange(len(rows)) // frames
        targets = np.where(is_right, rows.argmax(1), 1 - rows.argmax(1))
        found = judged(rows, targets, groups).calibrate(0.95)
        if found.is_proven:
            is_answered = judged(rows, targets).probabilities(found).max(1) >= found.threshold
            answering += 1
            wrongly += share.repeat(frames)[is_answered].mean() < 0.95
    assert wrongly <= 17
    assert answering > FOLDERS / 5 or truth == "constant"


def test_a_precision_that_the_images_do_not_prove_is_refused_with_the_highest_that_they_do():
    logits, targets = drawn(300)
    found = judged(logits, targets).calibrate(0.9)
    highest = found.proven[-1][1]
    assert found.promising(highest).is_proven
    with pytest.raises(SettingError, match=naming("precision=0.999", f"at most {highest:.3f}")):
        found.promising(0.999)
    with pytest.raises(SettingError, match="above 0, at most 1"):
        found.promising(0.0)
    with pytest.raises(SettingError, match=naming("precision=0.5", "--resume")):
        Calibration(1.0, 0.9, 0.95).promising(0.5)  # of a release that kept one threshold
    assert not judged(logits, targets).calibrate(0.999).is_proven


def test_intervals_agree_with_published_values():
    # Newcombe 1998, table I, Wilson's method.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)


@pytest.mark.parametrize("total", [3, 20, 59, 500])
def test_a_one_sided_bound_is_a_quantile_of_a_beta_distribution(total):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    for wrong in {0, 1, 2, total // 4}:
        exact = stats.beta.ppf(0.05, total - wrong, wrong + 1)
        assert lower_bound(total, wrong) == pytest.approx(exact, abs=0.004 if total < 9 else 0.001)
    assert lower_bound(total, total) == 0


def test_a_group_of_similar_images_counts_as_one():
    assert effective_count(np.arange(12)) == 12
    assert effective_count(np.arange(12) // 3) == pytest.approx(4)
    assert 1 < effective_count(np.array([0] * 9 + [1, 2, 3])) < 4
    groups = np.random.default_rng(0).integers(0, 5, 30)
    for end, count in enumerate(effective_counts(groups), start=1):
        assert count == pytest.approx(effective_count(groups[:end]))


def test_an_interval_is_wider_out_of_fold_and_for_similar_images():
    is_right, is_counted = np.arange(120) < 90, np.full(120, True)
    logits, targets = np.zeros((120, 2), np.float32), np.zeros(120, int)

    def interval(*of):
        return judged(logits, targets, *of).interval(is_right, is_counted)

    plain = interval()
    assert plain == wilson_interval(90, 120)
    for wider in (interval(None, 10), interval(np.arange(120) // 4)):
        assert wider.low < plain.low
        assert wider.high > plain.high
    nothing = judged(logits, targets).interval(is_right, ~is_counted)
    assert nothing == (0, 1)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.75, 0.25]] * 4, np.float32)
    assert calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.5)
