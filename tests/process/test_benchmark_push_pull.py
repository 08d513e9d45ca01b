"""That a push and pull, as the bench measures it, is one, and no worker computes meanwhile."""

from itertools import pairwise

import pytest

from benchmarks import SCRIPTS, round_trips
from benchmarks.errors import BenchmarkError
from benchmarks.push_pull import waits
from dist_net.vector import Vector
from dist_net.wire.segment import available


@pytest.mark.skipif(not available(), reason="needs shared memory")
@pytest.mark.parametrize(
    ("lease_minibatches", "one_after_the_other"),
    [(1, True), (64, False)],
    ids=["alone", "overlapped"],
)
def test_each_gradient_is_of_new_weights_where_they_are_waited_for(
    lease_minibatches: int, one_after_the_other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class Recorder(round_trips.Stopwatch):
        def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
            read.append(weights.ctypes.data)  # a snapshot lies elsewhere than the one before
            return super().run(weights, gradient)

    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))  # the server imports the measured recipe
    monkeypatch.setattr(round_trips, "Stopwatch", Recorder)
    monkeypatch.setattr(round_trips, "ROUND_TRIPS", 60)
    monkeypatch.setattr(round_trips, "WARM_UP", 10)
    times_s = round_trips.waits_s("shared-memory", lease_minibatches)
    assert len(times_s) >= 50
    assert min(times_s) > 0
    assert all(one != other for one, other in pairwise(read)) == one_after_the_other


@pytest.mark.parametrize(
    ("lease_minibatches", "deadline_s", "words"),
    [("1", 0.01, "'waits' was not answered within 0.01 s"), ("x", 30.0, "failed: exit code 2")],
)
def test_a_measurement_that_fails_says_so(
    lease_minibatches: str, deadline_s: float, words: str
) -> None:
    with pytest.raises(BenchmarkError, match=words):
        waits("tcp", lease_minibatches, deadline_s)
