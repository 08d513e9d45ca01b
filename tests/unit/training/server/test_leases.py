"""The ledger hands out every sample of every epoch, and counts each as applied exactly once."""

import json
from collections import Counter, deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.errors import CheckpointError, SettingError
from dist_net.training.server.leases import Lease, LeaseLedger
from naming import naming


class Accountant:
    """Drives a ledger as a server would, and notes each sample that is applied."""

    def __init__(self, ledger: LeaseLedger) -> None:
        self.ledger = ledger
        self.applied: Counter[tuple[int, int]] = Counter()

    def push(self, worker_id: int, size: int) -> tuple[int, int, int, int] | None:
        """Grant and apply the worker's next samples; what was pushed, None if there was nothing."""
        lease = self.ledger.grant(worker_id)
        if lease is None:
            return None
        push = (worker_id, lease.lease_id, lease.start, min(lease.start + size, lease.stop))
        assert self.ledger.is_due(*push)
        self.applied.update((lease.epoch, sample) for sample in range(push[2], push[3]))
        self.ledger.applied(worker_id, push[3])
        return push

    def finish(self, worker_ids: range) -> None:
        for worker_id in worker_ids:
            while self.push(worker_id, 2):
                pass
        assert self.ledger.finished
        every = {(e, s) for e in range(self.ledger.epochs) for s in range(self.ledger.samples)}
        assert self.applied == Counter(every)


@settings(deadline=None)
@given(
    samples=st.integers(1, 40),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 7),
    lease_minibatches=st.integers(1, 4),
    events=st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "push", "hold", "die", "repeat", "restart"]),
            st.integers(0, 3),
        ),
        max_size=80,
    ),
)
def test_every_sample_is_applied_once_whatever_the_workers_do(
    samples: int,
    epochs: int,
    batch_size: int,
    lease_minibatches: int,
    events: list[tuple[str, int]],
) -> None:
    accountant = Accountant(LeaseLedger(samples, epochs, batch_size, lease_minibatches))
    pushes = []
    for event, worker_id in events:
        ledger = accountant.ledger
        if event == "push":
            push = accountant.push(worker_id, batch_size)
            pushes += [push] if push else []
        elif event == "hold":
            ledger.grant(worker_id)
        elif event == "die":
            ledger.release(worker_id)
        elif event == "repeat":
            assert not any(ledger.is_due(*push) for push in pushes)
        else:
            accountant.ledger = LeaseLedger(samples, epochs, batch_size, lease_minibatches)
            accountant.ledger.restore(json.loads(json.dumps(ledger.to_json())))
            pushes.clear()  # their workers' ids are unknown to a server that was started again
        assert accountant.ledger.applied_samples == sum(accountant.applied.values())
    accountant.finish(range(4))


class Worker:
    """A worker with pushes on their way, as many as the ledger is told of."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.lease = Lease(0, 0, 0, 0)
        self.next = 0
        self.on_their_way: deque[tuple[int, int, int]] = deque()

    def told(self, lease: Lease | None) -> None:
        if lease is not None and lease.lease_id != self.lease.lease_id:
            self.next = lease.start
        self.lease = replace(lease) if lease is not None else Lease(0, 0, 0, 0)

    def compute(self, batch_size: int, ahead: int) -> None:
        stop = min(self.next + batch_size, self.lease.stop)
        if self.next < stop and len(self.on_their_way) < ahead:
            self.on_their_way.append((self.lease.lease_id, self.next, stop))
            self.next = stop


@settings(deadline=None)
@given(
    samples=st.integers(1, 30),
    batch_size=st.integers(1, 3),
    lease_minibatches=st.integers(1, 15),
    ahead=st.integers(1, 3),
    events=st.lists(st.tuples(st.sampled_from("ccaaad"), st.integers(0, 3)), max_size=120),
)
def test_every_sample_is_applied_once_though_idle_workers_share_what_others_hold(
    samples: int,
    batch_size: int,
    lease_minibatches: int,
    ahead: int,
    events: list[tuple[str, int]],
) -> None:
    ledger = LeaseLedger(samples, 1, batch_size, lease_minibatches, ahead)
    workers = [Worker(worker_id) for worker_id in range(4)]
    applied: Counter[int] = Counter()

    def arrive(worker: Worker) -> None:
        """Take in the worker's next push, or its pull, and answer."""
        if worker.on_their_way:
            push = _, start, stop = worker.on_their_way.popleft()
            if ledger.is_due(worker.worker_id, *push):
                applied.update(range(start, stop))
                ledger.applied(worker.worker_id, stop)
            assert not ledger.is_due(worker.worker_id, *push)
        elif worker.next < worker.lease.stop:
            return
        worker.told(ledger.grant(worker.worker_id))

    to_the_end = [(event, index) for event in "ca" for index in range(4)] * (samples + 1)
    for event, index in events + to_the_end:
        worker = workers[index]
        if event == "c":
            worker.compute(batch_size, ahead)
        elif event == "a":
            arrive(worker)
        else:
            ledger.release(worker.worker_id)
            workers[index] = Worker(worker.worker_id)
        left = LeaseLedger(samples, 1, batch_size, lease_minibatches)
        left.restore(ledger.to_json())
        assert left.applied_samples == ledger.applied_samples == sum(applied.values())
    assert ledger.finished
    assert applied == Counter(range(samples))


def test_an_idle_worker_takes_half_of_what_another_holds_but_nothing_that_it_has_begun() -> None:
    ledger = LeaseLedger(36, 1, batch_size=2, lease_minibatches=9, ahead_minibatches=3)
    slow = ledger.grant(1)
    rest = ledger.grant(2)
    while rest is not None and rest.stop < 36:
        ledger.applied(2, rest.stop)
        rest = ledger.grant(2)
    assert slow is not None
    assert rest is not None
    assert (slow.start, slow.stop, rest.stop) == (0, 18, 36)
    half = ledger.grant(3)
    assert half is not None
    assert (half.start, half.stop, half.rival) == (8, 18, None)
    assert slow.stop == 8
    quarter = ledger.grant(4)
    assert quarter is not None
    assert (quarter.start, quarter.stop) == (14, 18)
    cut = ledger.grant(5)
    assert cut is not None
    assert (cut.start, cut.stop, slow.stop) == (6, 8, 6)


def two_rivals() -> tuple[LeaseLedger, Lease, Lease]:
    ledger = LeaseLedger(4, 1, batch_size=2, lease_minibatches=2, ahead_minibatches=2)
    first = ledger.grant(1)
    ledger.applied(1, 1)
    assert first is not None
    assert first.stop == 2
    other = ledger.grant(2)
    assert other is not None
    ledger.applied(2, 4)
    second = ledger.grant(2)
    assert second is not None
    assert (second.epoch, second.start, second.stop) == (first.epoch, first.start, first.stop)
    assert second.lease_id != first.lease_id
    return ledger, first, second


def test_of_two_rivals_only_the_first_push_counts() -> None:
    ledger, first, second = two_rivals()
    assert ledger.is_due(1, first.lease_id, 1, 2)
    assert ledger.is_due(2, second.lease_id, 1, 2)
    ledger.applied(2, 2)
    assert ledger.finished
    assert not ledger.is_due(1, first.lease_id, 1, 2)


def test_a_range_has_two_holders_at_most_and_whoever_is_left_keeps_it() -> None:
    ledger, _, second = two_rivals()
    assert ledger.grant(3) is None
    assert ledger.to_json()["remaining"] == [[0, 1, 2]]
    assert ledger.release(1) == 0
    assert ledger.to_json()["remaining"] == [[0, 1, 2]]
    third = ledger.grant(3)
    assert third is not None
    assert (third.start, third.rival, second.rival) == (1, 2, 3)
    assert ledger.release(3) == 0
    assert ledger.release(2) == 1


def test_samples_of_a_round_that_is_dropped_are_leased_again() -> None:
    ledger = LeaseLedger(8, 1, batch_size=2, lease_minibatches=1, round_leases=2)
    before = ledger.to_json()
    for worker_id in (1, 2):
        lease = ledger.grant(worker_id)
        assert lease is not None
        ledger.collected(worker_id, lease.stop)
    assert ledger.round_is_collected
    ledger.round_dropped()
    assert (ledger.applied_samples, ledger.round_is_collected) == (0, False)
    applied: Counter[int] = Counter()
    while not ledger.finished:
        for worker_id in (1, 2):
            lease = ledger.grant(worker_id)
            assert lease is not None
            applied.update(range(lease.start, lease.stop))
            ledger.collected(worker_id, lease.stop)
        ledger.round_applied()
    assert applied == Counter(range(8))
    assert before["remaining"] == []


def test_an_idle_worker_begins_the_next_epoch_while_the_last_of_this_one_is_out() -> None:
    ledger = LeaseLedger(samples=8, epochs=2, batch_size=4, lease_minibatches=2)
    slow, fast = ledger.grant(1), ledger.grant(2)
    assert slow is not None
    assert fast is not None
    assert (slow.epoch, slow.start, slow.stop) == (0, 0, 8)
    assert (fast.epoch, fast.start) == (1, 0)


def test_leases_shrink_to_one_minibatch_at_the_end_but_not_at_the_end_of_an_epoch() -> None:
    ledger = LeaseLedger(samples=64, epochs=2, batch_size=2, lease_minibatches=8)
    sizes = []
    while (lease := ledger.grant(1)) is not None:
        sizes.append(lease.stop - lease.start)
        ledger.applied(1, lease.stop)
    assert sizes == [16] * 7 + [8, 4, 2, 2]


def test_leases_shrink_earlier_where_more_workers_share_what_is_left() -> None:
    ledger = LeaseLedger(samples=64, epochs=1, batch_size=2, lease_minibatches=8)
    leases = [ledger.grant(worker_id) for worker_id in range(4)]
    assert [lease.stop - lease.start for lease in leases if lease] == [16, 12, 6, 2]


def test_a_worker_that_asks_twice_gets_the_same_lease() -> None:
    ledger = LeaseLedger(samples=8, epochs=1, batch_size=2, lease_minibatches=2)
    assert ledger.grant(1) is ledger.grant(1)


def test_only_the_next_samples_of_the_own_lease_are_due() -> None:
    ledger = LeaseLedger(samples=40, epochs=1, batch_size=2, lease_minibatches=4)
    lease = ledger.grant(1)
    assert lease is not None
    ledger.applied(1, 2)
    own = lease.lease_id
    assert ledger.is_due(1, own, 2, 4)
    for push in (
        *((1, own, 0, 2), (1, own, 4, 6), (1, own, 2, 2), (1, own, 2, lease.stop + 1)),
        *((1, own + 1, 2, 4), (2, own, 2, 4)),
    ):
        assert not ledger.is_due(*push)
    ledger.applied(1, lease.stop)
    assert not ledger.is_due(1, own, 2, 4)
    ledger.grant(1)
    assert not ledger.is_due(1, own, 2, 4)


def test_what_a_dead_worker_leaves_goes_to_the_next_one_first() -> None:
    ledger = LeaseLedger(samples=40, epochs=1, batch_size=2, lease_minibatches=4)
    ledger.grant(1)
    ledger.applied(1, 6)
    assert ledger.release(1) == 2
    assert ledger.release(1) == 0
    lease = ledger.grant(2)
    assert lease is not None
    assert (lease.epoch, lease.start, lease.stop) == (0, 6, 8)


def test_a_resumed_run_may_have_more_epochs_but_not_fewer_than_were_begun() -> None:
    ledger = LeaseLedger(samples=4, epochs=2, batch_size=4, lease_minibatches=1)
    ledger.grant(1)
    ledger.grant(2)
    state = ledger.to_json()
    longer = LeaseLedger(samples=4, epochs=3, batch_size=4, lease_minibatches=1)
    longer.restore(state)
    Accountant(longer).finish(range(2))
    with pytest.raises(SettingError, match=naming("epochs=1", "epoch 2")):
        LeaseLedger(samples=4, epochs=1, batch_size=4, lease_minibatches=1).restore(state)


@pytest.mark.parametrize(
    "remaining", [[[0, 0, 5]], [[1, 0, 4]], [[0, 0, 3], [0, 2, 4]], [[0, 3, 3]], [[0, -1, 2]]]
)
def test_ranges_that_cannot_be_are_refused(remaining: list[list[int]]) -> None:
    ledger = LeaseLedger(samples=4, epochs=2, batch_size=4, lease_minibatches=1)
    with pytest.raises(CheckpointError, match=naming("samples", "epochs")):
        ledger.restore({"remaining": remaining, "next_epoch": 1})
