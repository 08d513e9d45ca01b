"""Replay: compute a run again from its journal, in one process, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dist_net.errors import JournalDamagedError, JournalMismatchError
from dist_net.ground.checkpoint import Checkpoint
from dist_net.ground.vector import Vector
from dist_net.training.server.journal_records import (
    CHANGEABLE,
    Applied,
    Journal,
    Started,
    run_identity,
    sha256_of,
)
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.training.worker.local_steps import GradientFunction, LocalSteps


class ReplayResult(NamedTuple):
    """The end of a replay.

    ``matches``: the weights equal the run's at every checkpoint; if not, ``version`` is the first
    at which they differ. ``matched_version``: the last at which they are equal, or -1.
    """

    version: int
    weights_sha256: str
    matches: bool
    matched_version: int


class Replay:
    """Replay the run of ``journal`` from its first weights, or from a checkpoint.

    ``gradient_of(threads)`` returns the function that computes gradients. The state of a version is
    kept until the last result computed from it, by the journal.

    Raise JournalMismatchError for another run's journal, or a checkpoint that started no server.
    """

    def __init__(
        self,
        settings: RunSettings,
        journal: Journal,
        gradient_of: Callable[[int], GradientFunction],
        begin: Vector | Checkpoint,
    ) -> None:
        journal.require_identity(run_identity(settings.recipe_digest, settings.seed))
        first = begin.version if isinstance(begin, Checkpoint) else 0
        journal.require_version(first)
        self._settings = settings
        self._journal = journal
        self._first = first
        self._needed_until = self._look_ahead()
        self._gradient_of = gradient_of
        self._threads = 0
        self._kept: dict[int, Vector] = {}
        self._matched_version = -1
        *_, started = (each for each in journal.starts() if each.version <= first)
        self._begin(started, begin)

    def _begin(self, started: Started, begin: Vector | Checkpoint) -> None:
        """Begin, or resume, with the settings and the threads of a server that was started."""
        changed = {name: getattr(started, name) for name in CHANGEABLE}
        settings = replace(self._settings, **changed)
        if isinstance(begin, Checkpoint):
            self._run = RunState.resumed(settings, begin)
        else:
            self._run = RunState(settings, begin)
        if started.threads != self._threads:
            self._threads = started.threads
            self._gradient_at = self._gradient_of(started.threads)
        rule, rate_at = settings.start_rule(), settings.learning_rate_at
        self._local = LocalSteps(self._gradient_at, rule, settings.batch_size, rate_at)
        self._kept[self.version] = self._run.store.state

    def _look_ahead(self) -> dict[int, int]:
        needed_until = {}
        for record in self._journal.records():
            if isinstance(record, Applied) and record.version > self._first:
                needed_until[record.base_version] = record.version
        oldest = min(needed_until, default=self._first)
        if oldest < self._first:
            raise JournalMismatchError(
                f"a result applied after version {self._first} was computed from version "
                f"{oldest}, which the checkpoint lacks; replay from a checkpoint that a server was "
                f"started from, or from the first weights"
            )
        return needed_until

    def run(
        self, to: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> ReplayResult:
        """Replay up to version ``to``; None: all.

        ``progress`` is called with the numbers of replayed updates and of all updates. Raise
        JournalMismatchError for a version that the journal does not reach.
        """
        last = self._journal.version if to is None else to
        self._journal.require_version(last)
        if last < self.version:
            raise JournalMismatchError(
                f"version {last} is before version {self.version}, where the replay begins"
            )
        matches = self._is_as_it_was()
        for update in self._journal.updates():
            if not matches or self.version >= last:
                break
            if isinstance(update, Started):
                if update.version > self._first and update.version >= self.version:
                    self._begin(update, self._run.checkpoint())
            elif update[0].version > self.version:
                matches = self._apply(update) and self._is_as_it_was()
                if progress is not None:
                    progress(min(self.version, last) - self._first, last - self._first)
        digest = sha256_of(self._run.store.weights).hex()
        return ReplayResult(self.version, digest, matches, self._matched_version)

    @property
    def version(self) -> int:
        return self._run.store.version

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint of the run at that version; leased samples are returned."""
        return self._run.checkpoint()

    def _is_as_it_was(self) -> bool:
        """Return whether the weights equal the run's; True without a digest in the journal."""
        expected = self._journal.checkpoints.get(self.version)
        if expected is None:
            return True
        if expected != sha256_of(self._run.store.weights):
            return False
        self._matched_version = self.version
        return True

    def _apply(self, update: Sequence[Applied]) -> bool:
        """Apply results again; return False if the new state is not finite."""
        results, losses, right = zip(*map(self._compute, update), strict=True)
        if not self._run.apply_again(update, results, sum(losses), sum(right)):
            return False
        for applied in update:
            if self._needed_until[applied.base_version] <= self.version:
                self._kept.pop(applied.base_version, None)
        if self.version in self._needed_until:
            self._kept[self.version] = self._run.store.state
        return True

    def _compute(self, applied: Applied) -> tuple[Vector, float, int]:
        """Return the result of a lease, the summed loss and the number of right predictions."""
        if (base := self._kept.get(applied.base_version)) is None:
            raise JournalDamagedError(
                f"according to the journal, a result of version {applied.version} was computed "
                f"from version {applied.base_version}, which no worker received"
            )
        local, packing = self._local, self._run.settings.packing
        rounded = base
        if applied.is_packed:
            rounded = np.empty_like(base)
            packing.unpack_base(packing.pack_base(base), out=rounded)
        for _ in local.take(rounded, applied.steps):
            pass
        state = local.state
        if applied.is_packed:
            state = packing.pack_result(rounded, state)
        result = self._run.store.result_of(state, base, applied.is_packed)
        return result, local.loss_sum, local.correct
