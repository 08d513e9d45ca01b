"""The ledger of a run's samples: which worker computes each, and which are applied. Pure.

A run is ``epochs`` passes over ``samples`` samples, each in another shuffled order. A *lease* is a
contiguous range of one epoch's order, held by one worker. Every sample of every epoch is in exactly
one place: in the pool of unleased ranges, leased, collected (its result has arrived), or applied.

An idle worker may take another worker's lease, too: both compute the same samples from the same
state, as *rivals*. The first result counts and ends the rival's lease.
"""

from collections import deque
from collections.abc import Container
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from dist_net.errors import CheckpointError, SettingError
from dist_net.wire.lease_steps import LeaseSteps


class Range(NamedTuple):
    """Samples ``start`` up to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Lease:
    """Local steps of a worker, from the state ``version``. ``rival`` also takes them."""

    lease_id: int
    steps: LeaseSteps
    rival: int | None = None
    version: int = 0

    @property
    def range(self) -> Range:
        return Range(*self.steps[:3])


class LeaseLedger:
    """Grant ranges of samples to workers and track them. A worker holds at most one lease.

    Epochs have no barrier: once one is fully leased, the next lease is of the next epoch.
    """

    def __init__(self, samples: int, epochs: int) -> None:
        self.samples = samples
        self.epochs = epochs
        self.applied_samples = 0
        self._collected: list[Range] = []
        self._pool: deque[Range] = deque()
        self._unleased = samples * epochs
        self._next_epoch = 0
        self._next_lease_id = 1
        self._leases: dict[int, Lease] = {}

    @property
    def finished(self) -> bool:
        return self.applied_samples == self.samples * self.epochs

    @property
    def everything_is_leased(self) -> bool:
        return self._unleased == 0

    @property
    def granted(self) -> int:
        """The number of leases that are held, rivals counted once, or collected."""
        return len({lease.range for lease in self._leases.values()}) + len(self._collected)

    @property
    def collected_samples(self) -> int:
        """The samples of results that have arrived and are not applied."""
        return sum(each.samples for each in self._collected)

    @property
    def awaits_results(self) -> bool:
        """Whether a worker holds a lease."""
        return bool(self._leases)

    @property
    def samples_ahead(self) -> int:
        """The samples of the range that the next lease begins."""
        return self._pool[0].samples if self._pool else self.samples

    def lease_of(self, worker_id: int, lease_id: int | None = None) -> Lease | None:
        """Return the worker's lease, if it has this number."""
        lease = self._leases.get(worker_id)
        return lease if lease is None or lease_id in (None, lease.lease_id) else None

    def grant(
        self, worker_id: int, minibatches: int, batch_size: int, pace: int = 1, parts: int = 1
    ) -> Lease:
        """Grant up to ``minibatches`` of an epoch, if any are left, to a worker without a lease."""
        if not self._pool:
            self._pool.append(Range(self._next_epoch, 0, self.samples))
            self._next_epoch += 1
        left = self._pool.popleft()
        steps = LeaseSteps(*left, self.applied_samples, pace, batch_size, parts).first(minibatches)
        if steps.stop < left.stop:
            self._pool.appendleft(left._replace(start=steps.stop))
        self._unleased -= steps.samples
        return self._lease(worker_id, steps)

    def _lease(self, worker_id: int, steps: LeaseSteps, rival: int | None = None) -> Lease:
        lease = self._leases[worker_id] = Lease(self._next_lease_id, steps, rival)
        self._next_lease_id += 1
        return lease

    def rival_lease(self, worker_id: int, holders: Container[int] | None = None) -> Lease | None:
        """Lease the oldest lease (of ``holders``) without a rival again; None if there is none."""
        for holder, lease in self._leases.items():
            if lease.rival is None and (holders is None or holder in holders):
                lease.rival = worker_id
                return self._lease(worker_id, lease.steps, holder)
        return None

    def collect(self, worker_id: int) -> Lease:
        """Record that the result of the worker's lease has arrived; return the lease."""
        lease = self._leases.pop(worker_id)
        if lease.rival is not None:
            del self._leases[lease.rival]
        self._collected.append(lease.range)
        return lease

    def apply_collected(self) -> None:
        """Record that the collected results are in the state."""
        self.applied_samples += self.collected_samples
        self._collected.clear()

    def drop_collected(self) -> None:
        """Return the samples to the pool: their results cannot be applied."""
        for taken in sorted(self._collected, reverse=True):
            self._return(taken)
        self._collected.clear()

    def _return(self, left: Range) -> None:
        """Return samples to the pool, merged with the next: rounds are not cut short."""
        self._unleased += left.samples
        if self._pool and self._pool[0][:2] == (left.epoch, left.stop):
            left = left._replace(stop=self._pool.popleft().stop)
        self._pool.appendleft(left)

    def applied_again(self, done: Range) -> bool:
        """Record that unleased samples are in the state; return False if some are not unleased."""
        while self._next_epoch <= done.epoch < self.epochs:
            self._pool.append(Range(self._next_epoch, 0, self.samples))
            self._next_epoch += 1
        for index, (epoch, start, stop) in enumerate(self._pool):
            if epoch == done.epoch and start <= done.start < done.stop <= stop:
                del self._pool[index]
                for left in (Range(epoch, done.stop, stop), Range(epoch, start, done.start)):
                    if left.start < left.stop:
                        self._pool.insert(index, left)
                self.applied_samples += done.samples
                self._unleased -= done.samples
                return True
        return False

    def release(self, worker_id: int) -> None:
        """End the worker's lease; return its samples to the pool unless a rival holds them."""
        lease = self._leases.pop(worker_id, None)
        if lease is not None and lease.rival is not None:
            self._leases[lease.rival].rival = None
        elif lease is not None:
            self._return(lease.range)

    def to_json(self) -> dict[str, Any]:
        """Return the state for a checkpoint; leased and collected samples count as not applied."""
        leased = {lease.range for lease in self._leases.values()} | {*self._collected}
        remaining = [list(left) for left in (*sorted(leased), *self._pool)]
        return {"remaining": remaining, "next_epoch": self._next_epoch}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``to_json``; ``epochs`` may be larger.

        Raise ``SettingError`` for too few epochs, ``CheckpointError`` for ranges that overlap or
        are outside the run, and ``KeyError``, ``TypeError`` or ``ValueError`` for other JSON.
        """
        remaining = [Range(*left) for left in state["remaining"]]
        begun = state["next_epoch"]
        if any(type(number) is not int for number in (begun, *chain(*remaining))) or begun < 0:
            raise TypeError("not whole numbers")
        if begun > self.epochs:
            raise SettingError(
                f"epochs={self.epochs}: the checkpoint's run has already begun epoch {begun}; "
                f"expected epochs >= {begun}"
            )
        previous = Range(0, 0, 0)
        for left in sorted(remaining):
            free_from = previous.stop if left.epoch == previous.epoch else 0
            if left.epoch >= begun or not free_from <= left.start < left.stop <= self.samples:
                raise CheckpointError(
                    f"the checkpoint lists samples {left.start} to {left.stop} of epoch "
                    f"{left.epoch} as remaining; expected disjoint ranges in {begun} epochs of "
                    f"{self.samples} samples. Resume from another checkpoint"
                )
            previous = left
        left_over = sum(left.samples for left in remaining)
        self._pool.clear()
        for left in sorted(remaining, reverse=True):
            self._return(left)
        self._next_epoch = begun
        self.applied_samples = begun * self.samples - left_over
        self._unleased = self.samples * self.epochs - self.applied_samples
