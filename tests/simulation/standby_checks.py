"""The invariants of a run with standbys, checked at every event."""

from collections.abc import Iterable

import numpy as np

from dist_net.errors import BadInputError
from dist_net.ground.vector import Vector
from dist_net.training.server.journal import JournalFile, read_journal, read_tail
from dist_net.training.server.journal_records import Applied, run_identity
from dist_net.training.server.loop import ServerLoop
from dist_net.training.server.members import NO_WORKER, Member, VoterId
from dist_net.training.server.settings import CONTINUES, RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.messages import Push
from simulation.disk import VirtualDisk, checkpoint_on
from simulation.failures import InvariantBrokenError, require
from simulation.invariants import CHECKPOINT, JOURNAL, OWNER, KnownVersion, RunChecks
from simulation.memory import VirtualMemory
from simulation.processes import LoopProcess, WorkerProcess


class StandbyChecks:
    """Checks all histories of a run, one for each term, and how they follow each other."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._histories: dict[int, RunChecks] = {}
        self._claimed: dict[VirtualDisk, int] = {}
        self._last: tuple[int, LoopProcess] | None = None
        self.workers: dict[str, WorkerProcess] = {}
        self.former_seats: set[VoterId] = set()  # of workers that were started again
        self.progress_s = 0.0  # when something was last applied

    def begin(
        self,
        server: LoopProcess,
        run: RunState,
        journal: JournalFile,
        disk: VirtualDisk,
        memory: VirtualMemory,
    ) -> None:
        """Check a server that begins a term from the files on its disk."""
        term = journal.term
        require(term not in self._histories, f"two servers begin the term {term:x}")
        claimed = self._claimed.get(disk, 0)
        require(
            term > claimed, f"the {server.name} begins {term:x} after it has claimed {claimed:x}"
        )
        if disk.exists(OWNER) and disk.read(OWNER).startswith(b"%016x" % term):  # if not full
            self._claimed[disk] = term
        self.check_directory(disk)
        history = RunChecks(self._settings, disk, memory)
        history.versions = self._versions_until(run)
        history.begin(run, journal)
        self._histories[term] = history

        def accept(member: Member, push: Push, now: float) -> tuple[Applied, ...] | str:
            records = history.accept(member, push, now)
            if records:
                self._applied(server, member, term)
            return records

        vars(run)["accept"] = accept

    def _versions_until(self, run: RunState) -> dict[int, KnownVersion]:
        """Return the versions of a history that has this state."""
        version, state = run.store.version, run.store.state
        if not self._histories:
            return {}
        for term in sorted(self._histories, reverse=True):
            known = self._histories[term].versions
            if version in known and np.array_equal(known[version].state, state):
                return known
        raise InvariantBrokenError(f"no server had the state from which term begins: {version}")

    def superseded(self, term: int) -> None:
        """Check that a server of a term that ends has a successor."""
        require(max(self._histories) > term, f"the server of {term:x} has no successor, and ends")

    def is_of_run(self, version: int, weights: Vector) -> bool:
        """Return whether a version had these weights, in some term."""
        versions = (each.versions.get(version) for each in self._histories.values())
        return any(np.array_equal(of.state[: len(weights)], weights) for of in versions if of)

    def _applied(self, server: LoopProcess, member: Member, term: int) -> None:
        """Check that a result may be applied in this term, now."""
        self.progress_s = server.schedule.now_s
        for worker in self.workers.values():
            if worker.loop._identity == member.identity:
                seen = worker.seen_term
                is_newest = seen <= term
                require(is_newest, f"{worker.name} has seen {seen:x}, and is applied in {term:x}")
        last_term, last = self._last or (term, server)
        is_back = term < last_term and last.is_alive
        if is_back and self._settings.minority != CONTINUES:
            both = f"the {server.name} applies in {term:x}, after the {last.name} in {last_term:x}"
            raise InvariantBrokenError(both)
        self._last = term, server
        assert server.loop is not None
        seats = {(each.key, each.loop._identity) for each in self.workers.values()}
        for voters in server.loop.server.standbys.remembered.voters:
            strangers = (
                {each.voter_id for each in voters if each.identity != NO_WORKER}
                - seats
                - self.former_seats
            )
            require(not strangers, f"{strangers} have votes in the run of the {server.name}")

    def turned(self, loop: ServerLoop, process_id: int) -> bool:
        """Check a server after each of its turns; return whether it has applied every sample."""
        history = self._histories[loop.term]
        assert history.run is not None
        history.check_leaks(history.run, loop, process_id)
        return history.is_finished

    def copied(self, disk: VirtualDisk, version: int) -> None:
        """Check that a run can be resumed from a copy on a standby's disk."""
        identity = run_identity(self._settings.recipe_digest, self._settings.seed)
        try:
            read_tail(JOURNAL, identity, version, disk)
        except BadInputError as error:
            raise InvariantBrokenError(f"a copy cannot be resumed: {error}") from error

    def has_last(self, term: int, version: int) -> None:
        """Check that the copy of a standby that ends with its run is of the last version."""
        history = self._histories[term]
        is_last = history.is_finished and version == max(history.versions)
        require(is_last, f"a standby ends with version {version} of {term:x}")

    def check_directory(self, disk: VirtualDisk) -> None:
        """Check that a run can be resumed from a disk, and each sample is once in its journal."""
        if not disk.exists(CHECKPOINT):
            return
        self.copied(disk, checkpoint_on(disk, CHECKPOINT).version)
        applied = np.zeros(self._settings.samples_total, np.bool_)
        for record in read_journal(JOURNAL, disk).records():
            if isinstance(record, Applied):
                first = record.steps.epoch * self._settings.samples
                samples = slice(first + record.steps.start, first + record.steps.stop)
                require(not applied[samples].any(), f"a journal has samples twice: {record}")
                applied[samples] = True

    def finished(self, loop: ServerLoop, disks: Iterable[VirtualDisk]) -> None:
        """Check the end of the run that this server has finished, and all run directories."""
        self._histories[loop.term].finished()
        for disk in disks:
            self.check_directory(disk)
