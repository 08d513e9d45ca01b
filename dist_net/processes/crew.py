"""The workers of a cluster: started, started again when they die, and ended together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dist_net.errors import ProcessFailedError
from dist_net.processes.child import RunningChild, end
from dist_net.processes.replacement import ReplacedChild
from dist_net.processes.roles import Launcher, Role


class Crew:
    """``count`` workers, or with None as many as the launcher has room for, which may change.

    ``role`` gives a worker's by its name; each is started again up to ``restarts`` times. What
    people should know is said by ``say``, once.
    """

    def __init__(
        self,
        launcher: Launcher,
        role: Callable[[str], Role],
        count: int | None,
        restarts: float,
        say: Callable[[str], None],
    ) -> None:
        self._launcher = launcher
        self._role = role
        self._count = count
        self._restarts = restarts
        self._say = say
        self._workers: list[ReplacedChild] = []
        self._started = 0  # since they were all started
        self._given_up: set[ReplacedChild] = set()
        self._has_waiting = False

    def start(self) -> None:
        """Starts them, anew if there were any."""
        end(self.children, 0.0)
        self._workers, self._started = [], 0
        self._given_up.clear()
        self._add(self._launcher.room() if self._count is None else self._count)

    @property
    def children(self) -> list[RunningChild]:
        return [each.child for each in self._workers]

    @property
    def ended(self) -> Sequence[ReplacedChild]:
        """Those that have ended, to be looked after, or not if that was as it should be."""
        return [each for each in self._workers if each.child.exit_code is not None]

    def look_after(self, ended: Sequence[ReplacedChild]) -> None:
        """Starts again those that died, when it is time.

        Where the nodes decide how many there are, forgets those whose node is gone, and starts as
        many as there is room for.
        """
        for worker in ended:
            if self._count is None and worker.child.is_lost:
                self._workers.remove(worker)
                self._say(f"{worker.child.failure()}; others do what it had begun")
            elif (said := worker.look()) is not None:
                self._say(said)
            if worker.is_given_up and worker not in self._given_up:
                self._given_up.add(worker)
                self._say(f"{worker.child.failure()}; others do what it had begun")
        if self._count is None:
            self._add(self._launcher.room())
        waiting = [child.name for child in self.children if child.waits_for_room]
        if waiting and not self._has_waiting:
            self._say(f"no CPU is free yet for {', '.join(waiting)}")
        self._has_waiting = bool(waiting)

    @property
    def is_over(self) -> bool:
        """Whether each worker has done its work, or is not started again."""
        return all(each.child.exit_code == 0 or each.is_given_up for each in self._workers)

    @property
    def failure(self) -> ProcessFailedError | None:
        """Why the last of them has ended, if all have for good."""
        if not self._workers or len(self._given_up) < len(self._workers):
            return None
        return self._workers[-1].child.failure()

    def end(self, grace_s: float) -> None:
        """Ends them, and kills those that take longer."""
        for child in self.children:
            child.terminate()
        end(self.children, grace_s)

    def _add(self, count: int) -> None:
        for _ in range(count):
            role = self._role(f"worker-{self._started}")
            self._started += 1
            start = partial(self._launcher.start, role)
            self._workers.append(ReplacedChild(start, self._restarts))
