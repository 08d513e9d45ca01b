"""Start the processes of a cluster, restart dead processes, and end all together."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from dist_net.errors import ProcessFailedError
from dist_net.processes.launcher import POLL_S, LocalProcesses, ProcessSpec, RunningChild, end

RESTARTS = 3
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
HEALTHY_S = 60.0
"""A process that has run for this long regains its full number of restarts."""
SETTLED_S = 2.0
"""A process that has run for this long did not fail while starting: it is restarted at once."""
STOPS_WITHIN_S = 2.0


class RestartBudget:
    """How often, and after which pauses, a process is restarted. No I/O."""

    def __init__(self, restarts: float) -> None:
        self._restarts = restarts
        self._used = 0
        self._next_pause_s = FIRST_PAUSE_S

    def pause_s(self, lived_s: float) -> float | None:
        """Return the pause before the next start of a process that ran for ``lived_s``, or None."""
        if lived_s >= HEALTHY_S:
            self._used = 0
        if self._used >= self._restarts:
            return None
        self._used += 1
        if lived_s >= SETTLED_S:
            self._next_pause_s = FIRST_PAUSE_S
            return 0.0
        pause_s = self._next_pause_s
        self._next_pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return pause_s


@dataclass(eq=False)
class SupervisedProcess:
    """The newest process of a ``spec``. ``is_over``: it has ended, and will not be restarted."""

    spec: Callable[[], ProcessSpec]
    budget: RestartBudget
    child: RunningChild = field(init=False)
    started_s: float = 0.0
    restart_at_s: float | None = None
    is_over: bool = False
    is_reported: bool = False


class Supervisor:
    """Keep a process running for each spec, as ``launcher`` starts them.

    ``may_restart`` is called once with each process that has ended. By default only a process that
    died is restarted: after it printed a reason, such as bad input, the next would end likewise.
    ``notify`` receives each message for the user once. Call ``poll`` often, or see ``watching``;
    all methods may be called from several threads.
    """

    def __init__(
        self,
        launcher: LocalProcesses,
        restarts: float,
        notify: Callable[[str], None],
        *,
        may_restart: Callable[[RunningChild], bool] = lambda child: child.has_died,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._restarts = restarts
        self._notify = notify
        self._may_restart = may_restart
        self._now = now
        self._servers: list[SupervisedProcess] = []
        self._workers: list[SupervisedProcess] = []
        self._worker: Callable[[str], ProcessSpec] | None = None
        self._count: int | None = 0
        self._workers_started = 0
        self._address = ""  # the server's, when the workers were started
        self._has_waiting = False
        self._lock = threading.RLock()
        self._is_stopped = threading.Event()
        self._watching: Future[None] = Future()

    def add(self, spec: ProcessSpec | Callable[[], ProcessSpec]) -> SupervisedProcess:
        """Start a process; a function returns the spec of each start. Raise ProcessFailedError."""
        spec_of = spec if callable(spec) else lambda: spec
        process = SupervisedProcess(spec_of, RestartBudget(self._restarts))
        self._start(process)
        self._servers.append(process)
        return process

    def add_workers(self, worker: Callable[[str], ProcessSpec], count: int | None) -> None:
        """Start ``count`` workers, or as many as there is room for. Raise ProcessFailedError."""
        with self._lock:
            self._worker, self._count = worker, count
            self._start_workers()

    @property
    def children(self) -> list[RunningChild]:
        return [each.child for each in (*self._servers, *self._workers)]

    @property
    def workers(self) -> list[RunningChild]:
        return [each.child for each in self._workers]

    @property
    def ended_workers(self) -> list[SupervisedProcess]:
        return [each for each in self._workers if each.is_over]

    @property
    def failure(self) -> ProcessFailedError | None:
        """Why the last worker ended, once all workers have failed for good."""
        is_left = any(not each.is_over or each.child.exit_code == 0 for each in self._workers)
        return None if is_left or not self._workers else self._workers[-1].child.failure()

    def poll(self) -> float:
        """Handle the processes that have ended; return the seconds until the next call is due."""
        with self._lock:
            if self._is_stopped.is_set():
                return POLL_S
            for process in [*self._servers, *self._workers]:
                self._look(process)
            if self._worker is not None and self._address != self._launcher.address:
                self.restart_workers()  # the server has moved
            elif self._count is None:
                self._add_workers(self._launcher.room())
            self._report_waiting()
            due_s = [
                each.restart_at_s - self._now()
                for each in (*self._servers, *self._workers)
                if each.restart_at_s is not None
            ]
            return max(0.0, min([self._launcher.poll(), *due_s]))

    def restart_workers(self) -> None:
        with self._lock:
            end(self.workers, 0.0)
            self._start_workers()

    def report_ended(self, workers: Sequence[SupervisedProcess]) -> None:
        """Notify of failed workers, and restart workers that were done: the run continues."""
        with self._lock:
            for worker in workers:
                if worker.child.exit_code == 0:
                    self._start(worker)
                elif not worker.is_reported:
                    worker.is_reported = True
                    self._notify_lost(worker.child)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which a thread calls ``poll``, whatever this thread does.

        Linux ends a process with the thread that started it: call ``end`` inside the context.
        """

        def watch() -> None:
            while not self._is_stopped.is_set():
                self._is_stopped.wait(self.poll())

        with ThreadPoolExecutor(1, "supervisor") as threads:  # its thread outlives `watch`
            self._watching = threads.submit(watch)
            try:
                yield
            finally:
                self._is_stopped.set()

    def require_running(self) -> None:
        """Raise the error that ended the thread of ``watching``, if one has."""
        if self._watching.done():
            self._watching.result()

    def is_replaced(self, process: SupervisedProcess, died: RunningChild) -> bool:
        """Wait until another process runs in the place of ``died``; return False if none will."""
        while process.child is died and not process.is_over:
            self.require_running()
            self._is_stopped.wait(POLL_S)
        return process.child is not died

    def end(self, grace_s: float, server_grace_s: float | None = None) -> None:
        """Terminate all processes; kill workers after ``grace_s``, others after their grace."""
        self._is_stopped.set()  # no more are started
        if self._lock.acquire(timeout=STOPS_WITHIN_S):  # a start on Ray may take longer
            self._lock.release()
        servers = [each.child for each in self._servers]
        for child in self.children:
            child.terminate()
        end(self.workers, grace_s)
        end(servers, grace_s if server_grace_s is None else server_grace_s)

    def _look(self, process: SupervisedProcess) -> None:
        now = self._now()
        if process.restart_at_s is not None:
            if now >= process.restart_at_s:
                self._restart(process)
        elif not process.is_over and process.child.exit_code is not None:
            child, pause_s = process.child, None
            if self._may_restart(child):
                if self._count is None and child.is_lost and process in self._workers:
                    self._workers.remove(process)
                    self._notify_lost(child)
                    return
                pause_s = process.budget.pause_s(now - process.started_s)
            if pause_s is None:
                process.is_over = True
                return
            when = f"in {pause_s:.1f} s" if pause_s else "now"
            self._notify(f"{child.failure()}; restarting it {when}")
            process.restart_at_s = now + pause_s
            if not pause_s:
                self._restart(process)

    def _restart(self, process: SupervisedProcess) -> None:
        try:
            self._start(process)
        except ProcessFailedError as error:
            self._notify(str(error))
            pause_s = process.budget.pause_s(0.0)
            process.is_over = pause_s is None
            process.restart_at_s = None if pause_s is None else self._now() + pause_s

    def _start(self, process: SupervisedProcess) -> None:
        with self._lock:
            spec = process.spec()
            process.started_s = self._now()
            try:
                process.child = self._launcher.start(spec)
            except OSError as error:  # no free descriptor, or the logs cannot be opened
                raise ProcessFailedError(f"{spec.name} cannot be started: {error}") from error
            process.restart_at_s, process.is_over = None, False

    def _start_workers(self) -> None:
        self._workers, self._workers_started = [], 0
        self._address = self._launcher.address
        self._add_workers(self._launcher.room() if self._count is None else self._count)

    def _add_workers(self, count: int) -> None:
        assert self._worker is not None
        for _ in range(count):
            spec = partial(self._worker, f"worker-{self._workers_started}")
            self._workers_started += 1
            process = SupervisedProcess(spec, RestartBudget(self._restarts))
            self._start(process)
            self._workers.append(process)

    def _notify_lost(self, child: RunningChild) -> None:
        self._notify(f"{child.failure()}; other workers take over its work")

    def _report_waiting(self) -> None:
        waiting = [child.name for child in self.workers if child.waits_for_room]
        if waiting and not self._has_waiting:
            self._notify(f"no CPU is free yet for {', '.join(waiting)}")
        self._has_waiting = bool(waiting)
