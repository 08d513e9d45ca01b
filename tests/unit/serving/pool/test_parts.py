"""What the pool is put together from, one piece at a time."""

from __future__ import annotations

import numpy as np
import pytest

from dist_net.serving.pool import open_requests as quarantine
from dist_net.serving.pool.open_requests import Quarantine
from dist_net.serving.pool.requests import InferenceRequest, Status
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


def test_absorbed_statistics_are_counted_too() -> None:
    one, other = ModelStatistics(admitted=2), ModelStatistics(admitted=3, expired=1)
    one.ran(4, 0.5, 1.0)
    other.ran(4, 0.25, 2.0)
    one.absorb(other)
    assert (one.admitted, one.expired, one.inference_count, one.last_inference_s) == (5, 1, 8, 2.0)
    assert (one.batches[4].count, one.batches[4].seconds) == (2, 0.75)


def crash(aside: Quarantine, payload: bytes, now: float = 0.0, version: int = 1) -> None:
    """A payload ends two workers, alone with each."""
    for _ in range(2):
        aside.add(InferenceRequest("net", payload), version, is_alone=True, now=now)


def status(aside: Quarantine, payload: bytes, now: float = 0.0, version: int = 1) -> Status | None:
    refusal = aside.refusal(InferenceRequest("net", payload), version, now)
    return None if refusal is None else refusal.status


def test_a_quarantine_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_SUSPECTS", 2)
    aside = Quarantine()
    for version, payload in enumerate((b"a", b"b", b"c")):
        crash(aside, payload, version=version)
    found = [status(aside, payload, version=of) for of, payload in enumerate((b"a", b"b", b"c"))]
    assert found == [None, Status.FAILED, Status.FAILED]
    assert aside.refusal(InferenceRequest("net", memoryview(b"c")), 2, 0.0) is not None
    assert aside.refusal(InferenceRequest("net", b"c"), 3, 0.0) is None
    assert aside.refusal(InferenceRequest("other", b"c"), 2, 0.0) is None


def test_a_payload_is_quarantined_that_was_alone_with_two_lost_workers_and_never_answered() -> None:
    aside = Quarantine()
    assert not aside.is_suspect(InferenceRequest("net", b"a"), 1)
    aside.add(InferenceRequest("net", b"a"), 1, is_alone=False, now=0.0)
    aside.add(InferenceRequest("net", b"a"), 1, is_alone=True, now=0.0)
    assert aside.is_suspect(InferenceRequest("net", b"a"), 1)
    assert status(aside, b"a") is None
    aside.clear(InferenceRequest("net", b"a"), 1)
    aside.add(InferenceRequest("net", b"a"), 1, is_alone=True, now=0.0)
    assert status(aside, b"a") is None
    aside.add(InferenceRequest("net", b"a"), 1, is_alone=True, now=0.0)
    assert status(aside, b"a") is Status.FAILED


def test_a_version_that_three_inputs_crash_within_a_minute_pauses_until_the_first_is_as_old() -> (
    None
):
    aside = Quarantine()
    for now, payload in enumerate((b"a", b"b", b"c")):
        assert status(aside, b"harmless", now) is None
        crash(aside, payload, float(now))
    refusal = aside.refusal(InferenceRequest("net", b"harmless"), 1, 10.0)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_s) == (Status.UNAVAILABLE, 50.0)
    assert "3 inputs ended the workers" in refusal.reason
    assert status(aside, b"harmless", 10.0, version=2) is None
    assert status(aside, b"harmless", 60.0) is None
    assert status(aside, b"a", 60.0) is Status.FAILED
    crash(aside, b"d", 60.5)
    assert status(aside, b"harmless", 60.9) is Status.UNAVAILABLE
    assert status(aside, b"harmless", 61.0) is None
