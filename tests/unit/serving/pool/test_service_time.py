"""How long batches are expected to take."""

from __future__ import annotations

import numpy as np
import pytest

from dist_net.serving.pool.scheduler import ServiceTime


def measured(*seconds: float, rows: int = 4) -> ServiceTime:
    times = ServiceTime()
    for now, took_s in enumerate(seconds):
        times.observe(rows, took_s, float(now))
    return times


def test_nothing_is_expected_before_anything_was_measured() -> None:
    assert ServiceTime().expected_s(1) is None
    assert ServiceTime().cautious_s(1) is None


def test_a_size_that_was_not_measured_is_judged_in_proportion_to_the_only_one_that_was() -> None:
    times = measured(*[0.1] * 20)
    assert [times.expected_s(rows) for rows in (2, 4, 8)] == pytest.approx([0.05, 0.1, 0.2])


def test_two_sizes_tell_of_all_others() -> None:
    times = ServiceTime()
    for now in range(40):
        rows = 2 if now % 2 else 6
        times.observe(rows, 0.02 + 0.06 * rows, float(now))
    found = [times.expected_s(rows) for rows in (1, 2, 4, 6, 8)]
    assert found == pytest.approx([0.08, 0.14, 0.26, 0.38, 0.5], rel=0.07)
    assert times.expected_s(10, 3) == pytest.approx(0.66, rel=0.05)


def test_more_rows_are_never_thought_to_take_less_time() -> None:
    times = ServiceTime()
    for now in range(40):
        times.observe(*((1, 0.3) if now % 2 else (8, 0.1)), float(now))
    assert times.expected_s(1) == times.expected_s(8) == pytest.approx(0.2, rel=0.1)


def test_a_batch_that_took_no_time_by_the_clock_is_no_obstacle() -> None:
    assert measured(0.0, 0.1, 0.0).expected_s(4) == pytest.approx(0.1)


def test_a_slow_first_batch_is_forgotten_by_the_second() -> None:
    assert measured(9.0, 0.1).expected_s(4) == pytest.approx(0.1)


def test_the_mean_follows_a_new_level_and_withstands_an_outlier() -> None:
    assert measured(*[0.1] * 20, *[0.2] * 20).expected_s(4) == pytest.approx(0.2, rel=0.05)
    outlier = measured(*[0.1] * 20, 30.0).expected_s(4)
    assert outlier is not None
    assert 0.1 < outlier < 0.15


def test_what_is_called_cautious_is_seldom_exceeded() -> None:
    random = np.random.default_rng(1)
    samples = random.normal(0.1, 0.02, 2000)
    cautious = measured(*samples[:1000]).cautious_s(4)
    assert cautious is not None
    assert np.mean(samples[1000:] > cautious) < 0.01
    assert cautious < 0.2


def test_what_was_measured_is_fresh_for_some_seconds() -> None:
    times = measured(5.0)
    assert times.is_fresh(4.0)
    assert not times.is_fresh(6.0)
    assert not ServiceTime().is_fresh(0.0)
