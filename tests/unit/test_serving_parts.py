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
        queue.add(request(number, deadline_s=1e6), 8)
        assert queue.remove(request(number))
        assert not queue.remove(request(number))
    assert not queue.lanes
    assert len(queue._deadlines) < 100
    assert queue.next_deadline_s() is None


def test_the_queue_expires_by_deadline_and_not_by_age() -> None:
    queue = RequestQueue()
    for number, deadline_s in enumerate([5.0, 1.0, 3.0]):
        queue.add(request(number, deadline_s), 8)
    assert queue.next_deadline_s() == 1.0
    assert [one.request_id for one in queue.expired(3.0)] == [1, 2]
    assert len(queue) == 1


def numbers(requests: list[Request]) -> list[int]:
    return [one.request_id for one in requests]


def taken(queue: RequestQueue) -> list[list[int]]:
    """The batches in the queue's only lane, one after the other."""
    batches = []
    while queue.lanes:
        (lane,) = queue.by_age()
        rows, left = lane.next_rows, lane.batches
        batch = queue.take(lane)
        assert sum(one.rows for one in batch) == rows
        assert lane.batches == left - 1
        batches.append(numbers(batch))
    return batches


def test_batches_are_as_large_as_the_strictest_in_them_allows() -> None:
    queue = RequestQueue()
    for number, most_rows in enumerate([8, 8, 3, 8, 2, 2, 8]):
        queue.add(request(number), most_rows)
    assert taken(queue) == [[0, 1, 2], [3, 4], [5, 6]]


def test_a_request_of_more_rows_than_fit_begins_the_next_batch() -> None:
    queue = RequestQueue()
    for number, rows in enumerate([3, 4, 2, 8, 1]):
        queue.add(request(number, rows=rows), 8)
    (lane,) = queue.by_age()
    assert (lane.rows, lane.batches, lane.is_full) == (18, 4, True)
    assert taken(queue) == [[0, 1], [2], [3], [4]]


def test_others_join_in_place_of_those_that_were_taken_out() -> None:
    queue = RequestQueue()
    waiting = [request(number) for number in range(3)]
    for one in waiting:
        queue.add(one, 3)
    (lane,) = queue.by_age()
    assert lane.is_full
    queue.remove(waiting[1])
    assert not lane.is_full
    queue.add(request(3), 3)
    queue.add(request(4), 3)
    assert taken(queue) == [[0, 2, 3], [4]]


def test_what_was_put_back_is_taken_first_and_alone() -> None:
    queue = RequestQueue()
    again = request(9)
    again.runs_alone = True
    for number in range(3):
        queue.add(request(number), 2)
    queue.put_back(again)
    (lane,) = queue.by_age()
    assert lane.is_full
    assert numbers(queue.take(lane)) == [9]
    assert numbers(queue.take(lane)) == [0, 1]
    assert (lane.rows, lane.batches) == (1, 1)
    queue.add(again, 8)
    queue.take(lane)
    queue.put_back(again)
    (lane,) = queue.by_age()
    assert lane.is_full  # and nobody joins it
    queue.add(request(3), 8)
    assert taken(queue) == [[9], [3]]


def test_a_batch_that_had_not_begun_stays_together_when_it_is_put_back() -> None:
    queue = RequestQueue()
    for number in range(4):
        queue.add(request(number), 2)
    (lane,) = queue.by_age()
    batch = queue.take(lane)
    for one in reversed(batch):
        queue.put_back(one)
    queue.add(request(4), 2)
    assert taken(queue) == [[0, 1], [2, 3], [4]]


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
