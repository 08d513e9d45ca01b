"""What the pool is put together from, one piece at a time."""

from __future__ import annotations

import numpy as np
import pytest

from dist_net.serving.pool import open_requests
from dist_net.serving.pool.open_requests import Quarantine
from dist_net.serving.pool.statistics import ModelStatistics, RecentLatencies


def test_percentiles_are_of_the_last_ten_seconds() -> None:
    recent = RecentLatencies()
    random = np.random.default_rng(0)
    latencies = random.lognormal(-6, 1.5, 4000)
    for latency in latencies:
        recent.add(float(latency), 3.5)
    shares = (0.5, 0.9, 0.99)
    found = recent.percentiles_s(shares, 12.9)
    assert found == pytest.approx(np.quantile(latencies, shares), rel=0.01)
    assert recent.requests_per_s(12.9) == 400
    assert recent.percentiles_s(shares, 13.5) is None
    assert recent.requests_per_s(13.5) == 0


def test_latencies_are_bounded_at_any_rate() -> None:
    recent = RecentLatencies()
    for number in range(40_000):
        recent.add(0.1 if number < 30_000 else 0.2, number / 10_000)
    assert recent.requests_per_s(4.0) == pytest.approx(10_000, rel=0.01)
    assert recent.percentiles_s((0.01,), 4.0) == (0.2,)
    recent.absorb(recent)
    assert recent.requests_per_s(4.0) == pytest.approx(20_000, rel=0.01)


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


def test_a_quarantine_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_requests, "MAX_QUARANTINED", 2)
    aside = Quarantine()
    for payload in (b"a", b"b", b"c"):
        for _ in range(2):
            aside.add("net", 1, payload, is_alone=True)
    is_held = [aside.holds("net", 1, payload) for payload in (b"a", b"b", b"c")]
    assert is_held == [False, True, True]
    assert aside.holds("net", 1, memoryview(b"c"))
    assert not aside.holds("net", 2, b"c")
    assert not aside.holds("other", 1, b"c")


def test_a_payload_is_quarantined_that_was_alone_with_two_lost_workers_and_never_answered() -> None:
    aside = Quarantine()
    assert aside.losses("net", 1, b"a") is None
    aside.add("net", 1, b"a", is_alone=False)
    aside.add("net", 1, b"a", is_alone=True)
    assert aside.losses("net", 1, b"a") == 1
    assert not aside.holds("net", 1, b"a")
    aside.clear("net", 1, b"a")
    aside.add("net", 1, b"a", is_alone=True)
    assert not aside.holds("net", 1, b"a")
    aside.add("net", 1, b"a", is_alone=True)
    assert aside.holds("net", 1, b"a")
