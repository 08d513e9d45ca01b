"""The ledger hands out every sample of every epoch, and counts each as applied exactly once."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.errors import CheckpointDamagedError, SettingError
from dist_net.parameter_server.leases import LeaseLedger, Verdict

DUE, DUPLICATE, REJECTED = Verdict.DUE, Verdict.DUPLICATE, Verdict.REJECTED


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
        assert self.ledger.verdict(*push) is DUE
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
            assert all(ledger.verdict(*push) is not DUE for push in pushes)
        else:
            accountant.ledger = LeaseLedger(samples, epochs, batch_size, lease_minibatches)
            accountant.ledger.restore(json.loads(json.dumps(ledger.to_json())))
        assert accountant.ledger.applied_samples == sum(accountant.applied.values())
    accountant.finish(range(4))


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
    assert ledger.verdict(1, own, 2, 4) is DUE
    assert ledger.verdict(1, own, 0, 2) is DUPLICATE
    assert ledger.verdict(1, own, 4, 6) is REJECTED
    assert ledger.verdict(1, own, 2, 2) is REJECTED
    assert ledger.verdict(1, own, 2, lease.stop + 1) is REJECTED
    assert ledger.verdict(1, own + 1, 2, 4) is REJECTED
    assert ledger.verdict(2, own, 2, 4) is REJECTED
    ledger.applied(1, lease.stop)
    assert ledger.verdict(1, own, 2, 4) is DUPLICATE
    ledger.grant(1)
    assert ledger.verdict(1, own, 2, 4) is DUPLICATE


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
    with pytest.raises(SettingError, match=r"epochs=1.*begun epoch 2"):
        LeaseLedger(samples=4, epochs=1, batch_size=4, lease_minibatches=1).restore(state)


@pytest.mark.parametrize(
    "remaining", [[[0, 0, 5]], [[1, 0, 4]], [[0, 0, 3], [0, 2, 4]], [[0, 3, 3]], [[0, -1, 2]]]
)
def test_ranges_that_cannot_be_are_refused(remaining: list[list[int]]) -> None:
    ledger = LeaseLedger(samples=4, epochs=2, batch_size=4, lease_minibatches=1)
    with pytest.raises(CheckpointDamagedError, match="leaves samples"):
        ledger.restore({"remaining": remaining, "next_epoch": 1, "next_lease_id": 2})
