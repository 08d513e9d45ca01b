"""Samples become the same minibatches everywhere, and none of them has a single sample."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.training.server.consistency import Consistency
from dist_net.training.server.leases import LeaseLedger
from dist_net.training.server.round_plan import LeaseTimes, PlannedRun, plan_round
from dist_net.wire.lease_steps import LeaseSteps, minibatches_in


@given(st.integers(1, 10**6), st.integers(1, 300))
def test_the_edges_of_minibatches_are_as_many_as_are_counted(samples: int, batch_size: int) -> None:
    samples = min(samples, 1000 * batch_size)
    edges = LeaseSteps(0, 7, 7 + samples, 0, 1, batch_size).edges
    sizes = [stop - start for start, stop in pairwise(edges)]
    assert (len(sizes), sum(sizes)) == (minibatches_in(samples, batch_size), samples)
    assert {*sizes[:-1]} <= {batch_size}
    assert min(2, batch_size, samples) <= sizes[-1] <= batch_size + 1


@pytest.mark.parametrize("batch_size", [32, 33, 3, 2])
@pytest.mark.parametrize("parts", [[1], [1, 1], [1] * 4, [1] * 8, [4, 1]])
@pytest.mark.parametrize("samples", [1009, 97, 3])
def test_no_minibatch_has_a_single_sample(samples: int, parts: list[int], batch_size: int) -> None:
    ledger, sizes = LeaseLedger(samples, epochs=3), list[int]()
    run = PlannedRun(Consistency.ROUNDS, 3 * minibatches_in(samples, batch_size), batch_size)
    while not ledger.everything_is_leased:
        times = [LeaseTimes(0.1, 0.1 * (1 + n % 2), each) for n, each in enumerate(parts)]
        plan = plan_round(run, times, ledger.samples_ahead)
        for worker, (of, steps) in enumerate(zip(plan.parts, plan.steps, strict=True)):
            if steps and not ledger.everything_is_leased:
                lease = ledger.grant(worker, of * steps, plan.batch_size, 1, of)
                for part in lease.steps.split():
                    sizes += [stop - start for start, stop in pairwise(part.edges)]
                ledger.collect(worker)
        ledger.apply_collected()
    assert sum(sizes) == 3 * samples
    assert min(sizes) >= 2
