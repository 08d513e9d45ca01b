"""The ledger of a run's samples: which worker computes each, and which are applied. Pure.

A run is ``epochs`` passes over ``samples`` samples, each in another shuffled order. A *lease* is a
contiguous range of one epoch's order, held by one worker and applied from its start. At any time,
every sample of every epoch is in exactly one place: applied, leased, or in the pool of unleased
ranges; and it is applied once.

When the pool is empty, idle workers share the other workers' leases. They take the part of the
longest lease that its holder cannot have begun. If no such part is left, they take a lease a
second time: both holders compute the same samples, as *rivals*. The first push counts; it ends the
rival's lease, and later pushes for that lease are dropped.

In a run of rounds (BSP, local steps), a lease is computed from the weights at the beginning of the
round, and *collected* until all leases of the round have arrived. They are applied at once.
"""

from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from dist_net.errors import CheckpointError, SettingError
from dist_net.wire.messages import PIPELINE


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
    """A range held by a worker; ``start`` advances as samples are applied.

    ``rival`` is the other worker with a lease of the same range. ``parts``: see ``LeaseSteps``.
    """

    lease_id: int
    epoch: int
    start: int
    stop: int
    rival: int | None = None
    parts: int = 1

    @property
    def samples(self) -> int:
        return self.stop - self.start


class LeaseLedger:
    """Grant ranges of samples to workers and track them. A worker holds at most one lease.

    A lease is ``lease_minibatches * batch_size`` samples, and smaller at the end of the run, so
    that the workers finish together. Epochs have no barrier: once an epoch is fully leased, the
    next worker gets the first range of the next epoch. A worker computes at most
    ``ahead_minibatches`` beyond its applied ones. ``round_leases`` is the number of leases in a
    round; None for a run without rounds.
    """

    def __init__(
        self,
        samples: int,
        epochs: int,
        batch_size: int,
        lease_minibatches: int,
        ahead_minibatches: int = PIPELINE.gradients,
        round_leases: int | None = None,
    ) -> None:
        self.samples = samples
        self.epochs = epochs
        self.applied_samples = 0
        self._batch_size = batch_size
        self._lease_minibatches = lease_minibatches
        self.round_leases = round_leases
        self._collected: list[Range] = []
        self._ahead_samples = batch_size * ahead_minibatches
        self._pool: deque[Range] = deque()
        self._unleased = samples * epochs
        self._next_epoch = 0
        self._next_lease_id = 1
        self._leases: dict[int, Lease] = {}

    @property
    def finished(self) -> bool:
        return self.applied_samples == self.samples * self.epochs

    def holds_lease(self, worker_id: int) -> bool:
        return worker_id in self._leases

    @property
    def is_between_rounds(self) -> bool:
        """Whether no lease of the next round has been granted."""
        return not self._leases and not self._collected

    @property
    def round_is_collected(self) -> bool:
        """Whether every gradient of the round has arrived."""
        rest_is_leased = self._unleased == 0 or self._round_is_leased
        return bool(self._collected) and rest_is_leased and not self._leases

    @property
    def _round_is_leased(self) -> bool:
        if self.round_leases is None:
            return False
        leased = {(lease.epoch, lease.start) for lease in self._leases.values()}  # rivals once
        return len(leased) + len(self._collected) >= self.round_leases

    def grant(
        self,
        worker_id: int,
        may_share: bool = True,
        minibatches: int | None = None,
        parts: int = 1,
    ) -> Lease | None:
        """Return the worker's lease, or grant a new one; None if nothing can be leased.

        With ``may_share``, another worker may hold some of its samples. ``minibatches`` is the
        length of each of a lease's ``parts`` in a run of rounds, up to the end of the epoch
        (default: ``lease_minibatches``).
        """
        if worker_id in self._leases:
            return self._leases[worker_id]
        if self._unleased == 0 or self._round_is_leased:
            return self._shared(worker_id) if may_share else None
        if not self._pool:
            self._pool.append(Range(self._next_epoch, 0, self.samples))
            self._next_epoch += 1
        epoch, start, end = self._pool.popleft()
        stop = min(end, start + self._lease_size(minibatches, parts))
        if stop < end:
            self._pool.appendleft(Range(epoch, stop, end))
        self._unleased -= stop - start
        lease = self._lease(worker_id, epoch, start, stop)
        lease.parts = min(parts, -(-lease.samples // self._batch_size))
        return lease

    def _lease(
        self, worker_id: int, epoch: int, start: int, stop: int, rival: int | None = None
    ) -> Lease:
        lease = self._leases[worker_id] = Lease(self._next_lease_id, epoch, start, stop, rival)
        self._next_lease_id += 1
        return lease

    def _shared(self, worker_id: int) -> Lease | None:
        """Lease to an idle worker a part of the longest lease, or all of it a second time."""
        longest: tuple[int, Lease] | None = None
        for holder, lease in self._leases.items():
            if lease.rival is None and (longest is None or lease.samples > longest[1].samples):
                longest = holder, lease
        if longest is None:
            return None
        holder, lease = longest
        half = lease.samples // (2 * self._batch_size) * self._batch_size
        cut = lease.start + max(half, self._ahead_samples)
        if cut < lease.stop and self.round_leases is None:
            # Safe without the holder's consent: it receives the new stop before it gets that far.
            stop, lease.stop = lease.stop, cut
            return self._lease(worker_id, lease.epoch, cut, stop)
        lease.rival = worker_id
        second = self._lease(worker_id, lease.epoch, lease.start, lease.stop, holder)
        second.parts = lease.parts
        return second

    def parts(self, worker_id: int) -> int:
        """Return the number of parts of the worker's lease."""
        return self._leases[worker_id].parts

    def _lease_size(self, minibatches: int | None, parts: int) -> int:
        if self.round_leases is not None:
            return self._batch_size * (minibatches or self._lease_minibatches) * parts
        # Guided self-scheduling (Polychronopoulos & Kuck 1987), with half the fair share because
        # workers differ in speed: at the end, the others wait for the slowest worker's lease.
        fair_share = self._unleased // (self._batch_size * (len(self._leases) + 1))
        return self._batch_size * max(1, min(self._lease_minibatches, fair_share // 2))

    def is_due(self, worker_id: int, lease_id: int, start: int, stop: int) -> bool:
        """Return whether samples ``start`` to ``stop`` are the next ones of the worker's lease."""
        lease = self._leases.get(worker_id)
        return (
            lease is not None
            and lease.lease_id == lease_id
            and start == lease.start < stop <= lease.stop
        )

    def applied(self, worker_id: int, stop: int) -> int:
        """Record that the samples of the worker's lease up to ``stop`` are in the weights.

        Return their epoch.
        """
        taken = self._taken(worker_id, stop)
        self.applied_samples += taken.samples
        return taken.epoch

    def collected(self, worker_id: int, stop: int) -> Range:
        """Record that the round has the gradient of the lease up to ``stop``; return its range."""
        taken = self._taken(worker_id, stop)
        self._collected.append(taken)
        return taken

    def round_applied(self) -> None:
        """Record that the collected gradients are in the weights."""
        self.applied_samples += sum(taken.samples for taken in self._collected)
        self._collected.clear()

    def round_dropped(self) -> None:
        """Return the collected samples to the pool: their mean cannot be applied."""
        for taken in sorted(self._collected, reverse=True):
            self._pool.appendleft(taken)
            self._unleased += taken.samples
        self._collected.clear()

    def _taken(self, worker_id: int, stop: int) -> Range:
        """Advance the worker's lease to ``stop``, and end its rival's; return the range."""
        lease = self._leases[worker_id]
        taken = Range(lease.epoch, lease.start, stop)
        lease.start = stop
        if lease.rival is not None:
            del self._leases[lease.rival]
            lease.rival = None
        if lease.start == lease.stop:
            del self._leases[worker_id]
        return taken

    def applied_again(self, done: Range) -> bool:
        """Record that unleased samples are in the weights.

        Return False, and change nothing, if some were applied before or are outside the run.
        """
        while self._next_epoch <= done.epoch < self.epochs:
            self._pool.append(Range(self._next_epoch, 0, self.samples))
            self._next_epoch += 1
        for index, (epoch, start, stop) in enumerate(self._pool):
            if epoch == done.epoch and start <= done.start < done.stop <= stop:
                del self._pool[index]
                for left in (Range(epoch, done.stop, stop), Range(epoch, start, done.start)):
                    if left.start < left.stop:
                        self._pool.insert(index, left)
                size = done.stop - done.start
                self.applied_samples += size
                self._unleased -= size
                return True
        return False

    def release(self, worker_id: int) -> int:
        """End the worker's lease; return the number of samples put back into the pool.

        0 if a rival still holds them.
        """
        lease = self._leases.pop(worker_id, None)
        if lease is None:
            return 0
        if lease.rival is not None:
            self._leases[lease.rival].rival = None
            return 0
        self._pool.appendleft(Range(lease.epoch, lease.start, lease.stop))
        self._unleased += lease.samples
        return lease.samples

    def to_json(self) -> dict[str, Any]:
        """Return the state for a checkpoint; leased and collected samples count as not applied."""
        # Rivals hold the same range.
        leased = {Range(lease.epoch, lease.start, lease.stop) for lease in self._leases.values()}
        leased.update(self._collected)
        return {
            "remaining": [list(left) for left in (*sorted(leased), *self._pool)],
            "next_epoch": self._next_epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``to_json``. ``samples`` must be unchanged; ``epochs`` may be larger.

        Raise ``SettingError`` for too few epochs, ``CheckpointError`` for ranges that
        overlap or are outside the run, and ``KeyError``, ``TypeError`` or ``ValueError`` for JSON
        that ``to_json`` does not write.
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
        left_over = sum(left.stop - left.start for left in remaining)
        self._pool = deque(remaining)
        self._next_epoch = begun
        self.applied_samples = begun * self.samples - left_over
        self._unleased = self.samples * self.epochs - self.applied_samples
