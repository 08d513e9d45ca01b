"""That a push and pull, as the bench measures it, is one, and no worker computes meanwhile."""

from itertools import pairwise

import pytest

from dist_net.benchmark import push_pull, synthetic
from dist_net.benchmark.peers.task import SAMPLES
from dist_net.cluster.options import RunOptions
from dist_net.recipe import load_recipe
from dist_net.wire.messages import Vector
from dist_net.wire.segment import available


@pytest.mark.skipif(not available(), reason="needs shared memory")
@pytest.mark.parametrize(
    ("batch_size", "one_after_the_other"),
    [(SAMPLES, True), (1, False)],
    ids=["alone", "overlapped"],
)
def test_each_gradient_is_of_new_weights_where_they_are_waited_for(
    batch_size: int, one_after_the_other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class Recorder(push_pull.Stopwatch):
        def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
            read.append(weights.ctypes.data)  # a snapshot lies elsewhere than the one before
            return super().run(weights, gradient)

    monkeypatch.setattr(push_pull, "Stopwatch", Recorder)
    monkeypatch.setattr(push_pull, "ROUND_TRIPS", 60)
    monkeypatch.setattr(push_pull, "WARM_UP", 10)
    loaded = load_recipe(synthetic.__file__)
    options = RunOptions(loaded.reference, batch_size=batch_size)
    times_s = push_pull.waits_s(loaded, "shared-memory", options)
    assert len(times_s) >= 50
    assert min(times_s) > 0
    assert all(one != other for one, other in pairwise(read)) == one_after_the_other
