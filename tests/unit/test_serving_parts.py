"""What the pool is put together from, one piece at a time."""

from __future__ import annotations

import numpy as np
import pytest

from dist_net.serving import quarantine
from dist_net.serving.quarantine import Quarantine
from dist_net.serving.request_queue import LaneKey, Request, RequestQueue
from dist_net.serving.service_time import ServiceTime
from dist_net.serving.statistics import ModelStatistics, RecentLatencies

LANE = LaneKey("net", None, False)


def request(number: int, deadline_s: float = 10.0, rows: int = 1) -> Request:
    return Request(number, LANE, b"", rows, float(number), deadline_s, 1)


def measured(*seconds: float, rows: int = 4) -> ServiceTime:
    times = ServiceTime()
    for now, took_s in enumerate(seconds):
        times.observe(rows, took_s, float(now))
    return times


def test_nothing_is_expected_before_anything_was_measured() -> None:
    assert ServiceTime().expected_s(1) is None
    assert ServiceTime().cautious_s(1) is None


def test_sizes_that_were_not_measured_are_judged_by_the_next_larger_or_in_proportion() -> None:
    times = measured(0.1, 0.1)
    times.observe(2, 0.06, 2.0)
    assert [times.expected_s(rows) for rows in (1, 2, 3, 4, 8)] == pytest.approx(
        [0.06, 0.06, 0.1, 0.1, 0.2]
    )


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


def test_sizes_that_do_not_occur_any_more_are_forgotten() -> None:
    times = measured(5.0, rows=8)
    assert times.is_fresh(8, 4.0)
    assert not times.is_fresh(8, 6.0)
    times.observe(1, 0.1, 100.0)
    assert times.expected_s(8) == pytest.approx(0.8)


def test_percentiles_are_within_a_few_percent_and_of_the_last_ten_seconds() -> None:
    recent = RecentLatencies()
    random = np.random.default_rng(0)
    latencies = random.lognormal(-6, 1.5, 5000)
    for latency in latencies:
        recent.add(float(latency), 3.5)
    shares = (0.5, 0.9, 0.99)
    found = recent.percentiles_s(shares, 12.9)
    assert found == pytest.approx(np.quantile(latencies, shares), rel=0.04)
    assert recent.requests_per_s(12.9) == 500
    assert recent.percentiles_s(shares, 13.0) is None
    assert recent.requests_per_s(13.0) == 0


def test_latencies_beyond_all_bins_are_counted_in_the_outermost() -> None:
    recent = RecentLatencies()
    for latency_s in (0.0, -1.0, 1e-9, 1e9):
        recent.add(latency_s, 0.0)
    assert recent.requests_per_s(0.0) == 0.4


def test_absorbed_statistics_are_counted_too() -> None:
    one, other = ModelStatistics(admitted=2), ModelStatistics(admitted=3, expired=1)
    one.ran(4, 0.5, 1.0)
    other.ran(4, 0.25, 2.0)
    other.recent.add(0.1, 2.0)
    one.recent.add(0.1, 1.0)
    one.absorb(other)
    assert (one.admitted, one.expired, one.inference_count, one.last_inference_s) == (5, 1, 8, 2.0)
    assert (one.batches[4].count, one.batches[4].seconds) == (2, 0.75)
    assert one.recent.requests_per_s(2.0) == 0.2


def test_the_queue_forgets_what_was_taken_out_of_it() -> None:
    queue = RequestQueue()
    for number in range(1000):
        queue.add(request(number, deadline_s=1e6))
        assert queue.remove(request(number))
        assert not queue.remove(request(number))
    assert not queue.lanes
    assert len(queue._deadlines) < 100
    assert queue.next_deadline_s() is None


def test_the_queue_expires_by_deadline_and_not_by_age() -> None:
    queue = RequestQueue()
    for number, deadline_s in enumerate([5.0, 1.0, 3.0]):
        queue.add(request(number, deadline_s))
    assert queue.next_deadline_s() == 1.0
    assert [one.request_id for one in queue.expired(3.0)] == [1, 2]
    assert len(queue) == 1


def test_what_was_put_back_is_taken_first_and_alone() -> None:
    queue = RequestQueue()
    again = request(9)
    again.runs_alone = True
    for number in range(3):
        queue.add(request(number))
    queue.put_back(again)
    (lane,) = queue.by_age()
    assert lane.is_full(8)
    assert [one.request_id for one in queue.take(lane, 8)] == [9]
    assert [one.request_id for one in queue.take(lane, 2)] == [0, 1]
    assert lane.rows == 1
    queue.add(again)
    assert [one.request_id for one in queue.take(lane, 8)] == [2]  # and nobody joins it


def test_a_quarantine_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MOST", 2)
    aside = Quarantine()
    for payload in (b"a", b"b", b"c"):
        aside.add("net", 1, payload)
    held = [aside.holds("net", 1, payload) for payload in (b"a", b"b", b"c")]
    assert held == [False, True, True]
    assert aside.holds("net", 1, memoryview(b"c"))
    assert not aside.holds("net", 2, b"c")
    assert not aside.holds("other", 1, b"c")
