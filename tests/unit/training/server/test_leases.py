"""The ledger hands out every sample of every epoch, and counts each as applied exactly once."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.errors import CheckpointError, SettingError
from dist_net.training.server.leases import Lease, LeaseLedger, Range
from naming import naming


class Accountant:
    """Drives a ledger as a server would, and counts each sample that is applied."""

    def __init__(self, ledger: LeaseLedger, batch_size: int = 2) -> None:
        self.ledger = ledger
        self._batch_size = batch_size
        self.applied: Counter[tuple[int, int]] = Counter()
        self._collected: list[Range] = []

    def pull(self, worker_id: int, minibatches: int) -> None:
        ledger = self.ledger
        if ledger.lease_of(worker_id) is not None:
            return
        if ledger.everything_is_leased:
            ledger.rival_lease(worker_id)
        else:
            ledger.grant(worker_id, minibatches, self._batch_size)

    def push(self, worker_id: int) -> None:
        """Collect the worker's lease, if it has one; a rival's is ended by it."""
        lease = self.ledger.lease_of(worker_id)
        if lease is not None:
            rivals = {lease.rival} - {None}
            assert self.ledger.collect(worker_id) is lease
            self._collected.append(lease.range)
            assert all(self.ledger.lease_of(each) is None for each in {worker_id} | rivals)

    def end_round(self) -> None:
        self.ledger.apply_collected()
        for epoch, start, stop in self._collected:
            self.applied.update((epoch, sample) for sample in range(start, stop))
        self._collected.clear()

    def drop_round(self) -> None:
        self.ledger.drop_collected()
        self._collected.clear()

    def restart(self) -> None:
        state = json.loads(json.dumps(self.ledger.to_json()))
        samples, epochs = self.ledger.samples, self.ledger.epochs
        self.ledger = LeaseLedger(samples, epochs)
        self.ledger.restore(state)
        self._collected.clear()

    def finish(self) -> None:
        while not self.ledger.finished:
            for worker_id in range(4):
                self.pull(worker_id, 2)
            for worker_id in range(4):
                self.push(worker_id)
            self.end_round()
        every = {(e, s) for e in range(self.ledger.epochs) for s in range(self.ledger.samples)}
        assert self.applied == Counter(every)
        assert self.ledger.to_json()["remaining"] == []


@settings(deadline=None)
@given(
    samples=st.integers(1, 40),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 7),
    events=st.lists(
        st.tuples(
            st.sampled_from(
                ["pull", "pull", "push", "push", "end round", "drop round", "release", "restart"]
            ),
            st.integers(0, 3),
            st.integers(1, 5),
        ),
        max_size=80,
    ),
)
def test_every_sample_is_applied_once_whatever_the_workers_do(
    samples: int, epochs: int, batch_size: int, events: list[tuple[str, int, int]]
) -> None:
    accountant = Accountant(LeaseLedger(samples, epochs), batch_size)
    for event, worker_id, minibatches in events:
        match event:
            case "pull":
                accountant.pull(worker_id, minibatches)
            case "push":
                accountant.push(worker_id)
            case "end round":
                accountant.end_round()
            case "drop round":
                accountant.drop_round()
            case "release":
                accountant.ledger.release(worker_id)
            case "restart":
                accountant.restart()
        assert accountant.ledger.applied_samples == sum(accountant.applied.values())
        left = LeaseLedger(samples, epochs)
        left.restore(accountant.ledger.to_json())  # at any time
        assert left.applied_samples == accountant.ledger.applied_samples
    accountant.finish()


def test_a_lease_is_the_next_minibatches_of_an_epoch_and_never_of_two() -> None:
    ledger = LeaseLedger(samples=22, epochs=2)
    leases = [ledger.grant(worker_id, 4, 4).range for worker_id in range(4)]
    assert leases == [(0, 0, 16), (0, 16, 22), (1, 0, 16), (1, 16, 22)]
    assert ledger.everything_is_leased
    assert not ledger.finished


def test_the_samples_ahead_end_with_the_epoch() -> None:
    ledger = LeaseLedger(samples=22, epochs=2)
    assert ledger.samples_ahead == 22
    ledger.grant(1, 4, 4)
    assert ledger.samples_ahead == 6
    ledger.grant(2, 2, 4)
    assert ledger.samples_ahead == 22


def test_a_lease_has_a_minibatch_for_each_part() -> None:
    ledger = LeaseLedger(samples=22, epochs=1)
    assert [ledger.grant(each, 4, 4, 8, parts=4).steps.parts for each in (1, 2)] == [4, 2]


def test_a_worker_has_one_lease_and_its_number_never_returns() -> None:
    ledger = LeaseLedger(samples=8, epochs=1)
    first = ledger.grant(1, 2, 2)
    assert ledger.lease_of(1) is ledger.lease_of(1, first.lease_id) is first
    assert ledger.lease_of(1, first.lease_id + 1) is ledger.lease_of(2) is None
    ledger.release(1)
    again = ledger.grant(1, 2, 2)
    assert (again.range, again.lease_id > first.lease_id) == (first.range, True)


def two_rivals() -> tuple[LeaseLedger, Lease, Lease]:
    ledger = LeaseLedger(4, 1)
    first = ledger.grant(1, 2, 2, pace=8, parts=2)
    second = ledger.rival_lease(2)
    assert second is not None
    return ledger, first, second


def test_rivals_compute_the_same() -> None:
    _, first, second = two_rivals()
    assert second.steps == first.steps
    assert (first.rival, second.rival) == (2, 1)
    assert first.lease_id != second.lease_id


@pytest.mark.parametrize("winner", [1, 2])
def test_of_two_rivals_only_the_first_push_counts(winner: int) -> None:
    ledger, _, _ = two_rivals()
    assert ledger.granted == 1
    ledger.collect(winner)
    assert not ledger.awaits_results
    assert ledger.granted == 1
    ledger.apply_collected()
    assert ledger.finished


def test_a_range_has_two_holders_at_most_and_whoever_is_left_keeps_it() -> None:
    ledger, _, second = two_rivals()
    assert ledger.rival_lease(3) is None
    assert ledger.to_json()["remaining"] == [[0, 0, 4]]
    ledger.release(1)
    assert ledger.to_json()["remaining"] == [[0, 0, 4]]
    third = ledger.rival_lease(3)
    assert third is not None
    assert (third.rival, second.rival) == (2, 3)
    ledger.release(3)
    assert ledger.everything_is_leased
    ledger.release(2)
    assert not ledger.everything_is_leased


def test_the_oldest_lease_is_shared_first() -> None:
    ledger = LeaseLedger(8, 1)
    ledger.grant(1, 2, 2)
    ledger.grant(2, 2, 2)
    shared = [ledger.rival_lease(worker_id) for worker_id in (3, 4, 5)]
    assert [each.range.start for each in shared if each] == [0, 4]


def test_samples_of_a_dropped_round_are_leased_again_in_their_order() -> None:
    ledger = LeaseLedger(12, 1)
    ranges = [ledger.grant(worker_id, 2, 2).range for worker_id in (1, 2, 3)]
    for worker_id in (3, 1, 2):
        ledger.collect(worker_id)
    assert ledger.granted == 3
    ledger.drop_collected()
    assert (ledger.applied_samples, ledger.granted) == (0, 0)
    assert [ledger.grant(worker_id, 2, 2).range for worker_id in (1, 2, 3)] == ranges


def test_what_a_dead_worker_leaves_goes_to_the_next_one_first() -> None:
    ledger = LeaseLedger(samples=40, epochs=1)
    ledger.grant(1, 4, 2)
    ledger.grant(2, 4, 2)
    ledger.release(1)
    ledger.release(1)  # it holds no lease any more
    assert ledger.grant(3, 10, 2).range == (0, 0, 8)  # no lease has a gap


def test_samples_that_a_journal_lists_are_applied_in_any_order_and_once() -> None:
    ledger = LeaseLedger(samples=10, epochs=2)
    for done in (Range(1, 4, 6), Range(0, 0, 10), Range(1, 0, 4)):
        assert ledger.applied_again(done)
    assert ledger.applied_samples == 16
    for wrong in (Range(1, 4, 5), Range(0, 9, 10), Range(1, 5, 7), Range(1, 6, 11), Range(2, 0, 1)):
        assert not ledger.applied_again(wrong)
    assert ledger.to_json() == {"remaining": [[1, 6, 10]], "next_epoch": 2}
    assert ledger.applied_again(Range(1, 6, 10))
    assert ledger.finished


def test_a_resumed_run_may_have_more_epochs_but_not_fewer_than_were_begun() -> None:
    ledger = LeaseLedger(samples=4, epochs=2)
    ledger.grant(1, 1, 4)
    ledger.grant(2, 1, 4)
    state = ledger.to_json()
    longer = LeaseLedger(samples=4, epochs=3)
    longer.restore(state)
    Accountant(longer).finish()
    with pytest.raises(SettingError, match=naming("epochs=1", "epoch 2")):
        LeaseLedger(samples=4, epochs=1).restore(state)


def test_a_resumed_run_may_have_another_batch_size() -> None:
    ledger = LeaseLedger(samples=10, epochs=1)
    ledger.grant(1, 1, 4)
    ledger.collect(1)
    ledger.apply_collected()
    resumed = LeaseLedger(samples=10, epochs=1)
    resumed.restore(ledger.to_json())
    assert resumed.samples_ahead == 6
    assert [resumed.grant(each, 1, 5).range for each in (1, 2)] == [(0, 4, 10), (1, 0, 5)]


@pytest.mark.parametrize(
    "remaining", [[[0, 0, 5]], [[1, 0, 4]], [[0, 0, 3], [0, 2, 4]], [[0, 3, 3]], [[0, -1, 2]]]
)
def test_ranges_that_cannot_be_are_refused(remaining: list[list[int]]) -> None:
    ledger = LeaseLedger(samples=4, epochs=2)
    with pytest.raises(CheckpointError, match=naming("samples", "epochs")):
        ledger.restore({"remaining": remaining, "next_epoch": 1})


def test_samples_that_return_to_the_pool_are_merged_so_that_the_next_lease_may_be_long() -> None:
    ledger = LeaseLedger(samples=40, epochs=2)
    for worker_id in (1, 2, 3):
        ledger.grant(worker_id, 2, 2)
    resumed = LeaseLedger(samples=40, epochs=2)
    resumed.restore(ledger.to_json())
    assert resumed.samples_ahead == 40
    for worker_id in (3, 2, 1):
        ledger.release(worker_id)
    assert ledger.grant(4, 20, 2).range == (0, 0, 40)
