"""Which processes are restarted, when, and how often; with processes and a clock of the test."""

from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from dist_net.errors import ProcessFailedError
from dist_net.processes.launcher import ProcessSpec, RunningChild
from dist_net.processes.supervisor import (
    FIRST_PAUSE_S,
    HEALTHY_S,
    MAX_PAUSE_S,
    SETTLED_S,
    RestartBudget,
    Supervisor,
)

SERVER, WORKER = (
    ProcessSpec("server", "module", (), is_server=True),
    ProcessSpec("worker", "module", ()),
)


class FakeProcess:
    """A process that ends when the test says so. ``ended_by``: how it was told to end."""

    pid = 1

    def __init__(self, said: Path) -> None:
        self._said = said
        self._exit_code: int | None = None
        self.ended_by = ""
        self.lost = ""
        said.write_text("")

    def poll(self) -> int | None:
        return self._exit_code

    def wait(self, timeout: float | None = None) -> int:
        assert self._exit_code is not None
        return self._exit_code

    def end(self, code: int, line: str = "") -> None:
        self._said.write_text(line)
        self._exit_code = code

    def terminate(self) -> None:
        self.ended_by = "SIGTERM"

    def kill(self) -> None:
        self.ended_by, self._exit_code = "SIGKILL", -9


class FakeLauncher:
    """Starts such processes; what it is asked for beyond that, it says as the test has set it."""

    poll_s = 0.1
    address = "here"

    def poll(self) -> float:
        return self.poll_s

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.started: list[tuple[str, FakeProcess]] = []
        self.fault: Exception | None = None
        self.free = 0

    def start(self, spec: ProcessSpec) -> RunningChild:
        if self.fault is not None:
            raise self.fault
        process = FakeProcess(self._logs / f"{spec.name}.out")
        self.started.append((spec.name, process))
        return RunningChild(spec.name, self._logs, process)

    def room(self) -> int:
        free, self.free = self.free, 0
        return free

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.started]

    @property
    def newest(self) -> FakeProcess:
        return self.started[-1][1]


class Supervised:
    """A supervisor over a launcher of fakes, its messages, and the time that it sees."""

    def __init__(self, logs: Path) -> None:
        self.launcher: Any = FakeLauncher(logs)
        self.said: list[str] = []
        self.now_s = 0.0

    def supervisor(self, restarts: float, **given: Any) -> Supervisor:
        return Supervisor(
            self.launcher, restarts, self.said.append, now=lambda: self.now_s, **given
        )

    def poll_until(self, supervisor: Supervisor, starts: int) -> None:
        """Poll when it is due, until so many processes have been started."""
        while len(self.launcher.started) < starts:
            pause_s = supervisor.poll()
            self.now_s += pause_s
            assert self.now_s < 100.0


@pytest.fixture
def fakes(tmp_path: Path) -> Supervised:
    return Supervised(tmp_path)


def test_a_killed_process_is_restarted_until_its_restarts_are_used_up(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=1)
    process = supervisor.add(SERVER)
    first = process.child
    fakes.launcher.newest.end(-9)
    assert supervisor.poll() == pytest.approx(min(FIRST_PAUSE_S, fakes.launcher.poll_s))
    assert process.child is first
    assert "code -9" in fakes.said[0]
    fakes.poll_until(supervisor, starts=2)
    assert process.child is not first
    assert supervisor.is_replaced(process, first)
    last = process.child
    fakes.launcher.newest.end(-9)
    supervisor.poll()
    assert process.is_over
    assert not supervisor.is_replaced(process, last)
    assert len(fakes.said) == 1


def test_a_process_that_settled_is_restarted_by_the_poll_that_sees_its_end(
    fakes: Supervised,
) -> None:
    supervisor = fakes.supervisor(restarts=1)
    supervisor.add(SERVER)
    fakes.now_s = SETTLED_S
    fakes.launcher.newest.end(-9)
    supervisor.poll()
    assert len(fakes.launcher.started) == 2


def test_a_process_that_printed_a_reason_is_not_restarted(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=3)
    process = supervisor.add(SERVER)
    fakes.launcher.newest.end(2, "FAILED no such recipe\n")
    supervisor.poll()
    assert process.is_over
    assert "no such recipe" in str(process.child.failure())


def test_a_role_is_made_before_each_start(fakes: Supervised) -> None:
    specs = iter([ProcessSpec("one", "module", ()), ProcessSpec("two", "module", ())])
    supervisor = fakes.supervisor(restarts=1)
    supervisor.add(lambda: next(specs))
    fakes.launcher.newest.end(-9)
    fakes.poll_until(supervisor, starts=2)
    assert fakes.launcher.names == ["one", "two"]


def test_a_failed_worker_is_reported_once_when_the_run_continues(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=0)
    supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), 2)
    fakes.launcher.newest.end(1, "FAILED no memory\n")
    supervisor.poll()
    assert not fakes.said
    for _ in range(2):
        supervisor.report_ended(supervisor.ended_workers)
    assert len(fakes.said) == 1
    assert "worker-1: no memory" in fakes.said[0]
    assert supervisor.failure is None
    fakes.launcher.started[0][1].end(-9)
    supervisor.poll()
    assert "code -9" not in str(supervisor.failure)  # the failure of the last worker
    assert len(supervisor.ended_workers) == 2


def test_a_worker_that_was_done_is_restarted_if_the_run_continues(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=0)
    supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), 1)
    fakes.launcher.newest.end(0)
    supervisor.poll()
    assert supervisor.failure is None
    assert len(fakes.launcher.started) == 1
    supervisor.report_ended(supervisor.ended_workers)
    assert fakes.launcher.names == ["worker-0"] * 2
    assert not supervisor.ended_workers


def test_workers_fill_the_room_there_is_and_lost_ones_are_forgotten(fakes: Supervised) -> None:
    fakes.launcher.free = 2
    supervisor = fakes.supervisor(restarts=3)
    supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), None)
    lost = fakes.launcher.newest
    lost.lost = "its node is gone"
    lost.end(-9)
    supervisor.poll()
    assert [child.name for child in supervisor.workers] == ["worker-0"]
    assert "its node is gone" in fakes.said[0]
    fakes.launcher.free = 1
    supervisor.poll()
    assert [child.name for child in supervisor.workers] == ["worker-0", "worker-2"]


def test_workers_are_started_anew_when_the_server_has_moved(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=3)
    supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), 1)
    before = fakes.launcher.newest
    fakes.launcher.address = "elsewhere"
    supervisor.poll()
    assert before.ended_by == "SIGKILL"
    assert fakes.launcher.names == ["worker-0"] * 2


def test_a_start_that_the_system_refuses_is_an_error_at_first_and_repeated_later(
    fakes: Supervised,
) -> None:
    supervisor = fakes.supervisor(restarts=8)
    supervisor.add(SERVER)
    fakes.launcher.newest.end(-9)
    fakes.launcher.fault = OSError("no descriptor")
    with pytest.raises(ProcessFailedError, match="worker cannot be started: no descriptor"):
        supervisor.add(WORKER)
    with pytest.raises(ProcessFailedError, match="worker-0 cannot be started: no descriptor"):
        supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), 2)
    for _ in range(20):
        fakes.now_s += supervisor.poll()
    assert any("server cannot be started: no descriptor" in line for line in fakes.said)
    fakes.launcher.fault = None
    fakes.poll_until(supervisor, starts=2)


def test_each_end_is_judged_once_and_may_forbid_a_restart(fakes: Supervised) -> None:
    judged: list[RunningChild] = []
    supervisor = fakes.supervisor(restarts=3, may_restart=lambda child: judged.append(child))
    process = supervisor.add(SERVER)
    fakes.launcher.newest.end(-9)
    for _ in range(3):
        supervisor.poll()
    assert judged == [process.child]
    assert process.is_over


def test_after_the_end_nothing_is_started(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=3)
    supervisor.add(SERVER)
    supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), 1)
    supervisor.end(0.0)
    supervisor.poll()
    assert [process.ended_by for _, process in fakes.launcher.started] == ["SIGKILL"] * 2
    assert len(fakes.launcher.started) == 2


def test_an_error_of_the_watching_thread_is_raised(fakes: Supervised) -> None:
    supervisor = fakes.supervisor(restarts=3)
    supervisor.add_workers(lambda name: ProcessSpec(name, "module", ()), None)

    def room() -> int:
        raise ProcessFailedError("no place in time")

    fakes.launcher.room = room
    with supervisor.watching():
        wait([supervisor._watching])
        with pytest.raises(ProcessFailedError, match="no place in time"):
            supervisor.require_running()


def test_pauses_grow_up_to_a_limit_and_have_an_end() -> None:
    budget = RestartBudget(8)
    pauses_s = [budget.pause_s(lived_s=1.0) for _ in range(9)]
    assert pauses_s[:-1] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, *[MAX_PAUSE_S] * 3])
    assert pauses_s[-1] is None


def test_a_process_that_was_healthy_for_long_may_die_as_often_as_at_first() -> None:
    budget = RestartBudget(1)
    for _ in range(10):
        assert budget.pause_s(lived_s=HEALTHY_S) == 0.0
    assert budget.pause_s(lived_s=HEALTHY_S - 1) is None


def test_a_process_that_dies_long_after_its_start_is_started_again_at_once() -> None:
    budget = RestartBudget(8)
    lives_s = [1.0, 1.0, 1.0, SETTLED_S, 1.0]
    pauses_s = [budget.pause_s(lived_s) for lived_s in lives_s]
    assert pauses_s == pytest.approx([0.2, 0.4, 0.8, 0.0, 0.2])


def test_none_is_started_again_if_that_is_not_wanted() -> None:
    assert RestartBudget(0).pause_s(lived_s=HEALTHY_S) is None
