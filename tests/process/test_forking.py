"""Forked processes: their parent, their outputs, and the end of the fork server."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_net.errors import ProcessFailedError
from dist_net.processes import fork_server
from dist_net.processes.fork_server import ForkingProcesses
from dist_net.processes.launcher import ProcessSpec, RunningChild, end
from dist_net.serving.gateway import pool_processes
from dist_net.serving.gateway.pool_processes import PoolProcesses, PoolSources

pytestmark = pytest.mark.main_path

Eventually = Callable[[Callable[[], Any]], Any]

NO_MODELS = PoolSources({}, (), Path())
MODULE = """
import os, signal, socket, sys, time
from pathlib import Path
from dist_net.processes.fork_server import fork_on_orders

def work(module, arguments):
    _, _, what, gate, *_ = arguments
    print("READY", os.getppid(), os.getpgid(0), len(os.listdir("/proc/self/fd")), flush=True)
    print("a word", file=sys.stderr)
    if what == "wait":
        while not Path(gate).exists():
            time.sleep(0.01)
    if what == "raise":
        raise RuntimeError("as it should")
    return 7

fork_on_orders(socket.socket(fileno=0), work)
"""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "forker.py").write_text(MODULE)
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


class Forks:
    """A fork server, and the processes that were ordered from it."""

    def __init__(self, logs: Path) -> None:
        self.gate = logs / "gate"
        self.ordered: list[RunningChild] = []
        self.launcher = ForkingProcesses("forker", logs)
        self.start()

    def start(self) -> None:
        self.child = self.launcher.start(self.launcher.fork_server)

    def order(self, name: str, what: str) -> None:
        spec = ProcessSpec(name, "work", (what, str(self.gate)))
        self.ordered.append(self.launcher.start(spec))

    @property
    def born(self) -> list[RunningChild]:
        self.launcher.receive()
        return [each for each in self.ordered if each.process_id != -1]


@pytest.fixture
def forks(logs: Path) -> Iterator[Forks]:
    made = Forks(logs)
    yield made
    made.launcher.stop_forking()
    for each in made.ordered:
        each.kill()


def test_a_forked_process_is_a_child_of_this_one_with_outputs_of_its_own(
    forks: Forks, eventually: Eventually
) -> None:
    forks.order("one", "return")
    forks.order("two", "raise")
    eventually(lambda: len(forks.born) == 2)
    one, two = forks.born
    assert one.wait(60)
    assert two.wait(60)
    for child, code in ((one, 7), (two, 1)):
        parent, group, descriptors = map(int, child.wait_until_ready(60))
        assert parent == os.getpid()
        assert group == child.process_id
        assert descriptors == 4  # stdin, stdout, stderr, and the directory that is listed
        assert child.log.read_text().startswith("a word\n")
        assert child.exit_code == code
    assert "as it should" in two.log.read_text()


def test_the_death_of_the_fork_server_is_nothing_to_those_who_are_born(
    forks: Forks, eventually: Eventually
) -> None:
    forks.order("one", "wait")
    eventually(lambda: forks.born)
    forks.launcher.stop_forking()
    forks.order("two", "return")
    forks.start()
    eventually(lambda: len(forks.born) == 2)
    assert forks.born[0].exit_code is None
    forks.gate.touch()
    assert [each.wait(60) and each.exit_code for each in forks.born] == [7, 7]


def test_a_process_forked_while_the_fork_server_dies_is_reported(
    forks: Forks, eventually: Eventually
) -> None:
    forks.order("one", "wait")
    eventually(lambda: forks.launcher.receive() or (forks.gate.parent / "one.out").exists())
    while "READY" not in (forks.gate.parent / "one.out").read_text():
        pass
    assert forks.ordered[0].process_id == -1
    forks.launcher.stop_forking()
    assert [each.name for each in forks.born] == ["one"]


def test_an_order_is_repeated_until_its_logs_can_be_opened(
    forks: Forks, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = forks.gate.parent / "one.log"
    blocked.mkdir()
    forks.order("one", "return")
    eventually(lambda: forks.born or str(blocked) in caplog.text)
    assert not forks.born
    blocked.rmdir()
    eventually(lambda: forks.born)
    assert forks.born[0].wait(60)
    assert blocked.read_text() == "a word\n"


def test_a_forked_process_is_ended_like_any_other(forks: Forks, eventually: Eventually) -> None:
    for name in ("one", "two", "three"):
        forks.order(name, "wait")
    eventually(lambda: len(forks.born) == 3)
    one, two, three = forks.born
    one.terminate()
    os.kill(two.process_id, signal.SIGSTOP)
    two.kill()
    end([one, three], 0.0)
    assert [each.exit_code for each in forks.born] == [-15, -9, -9]
    assert one.last_words == "it ended with code -15"


def test_a_fork_server_that_forks_nothing_is_killed(
    forks: Forks, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks.order("one", "return")
    eventually(lambda: forks.born)
    monkeypatch.setattr(fork_server, "ANSWERS_WITHIN_S", 0.1)
    os.kill(forks.child.process_id, signal.SIGSTOP)
    forks.order("two", "return")
    eventually(lambda: forks.born == forks.ordered or forks.child.exit_code is not None)
    assert len(forks.born) == 1
    monkeypatch.setattr(fork_server, "ANSWERS_WITHIN_S", 60.0)
    forks.start()
    eventually(lambda: len(forks.born) == 2)


def test_a_fork_server_that_hangs_while_it_starts_is_killed(
    forks: Forks, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "STARTS_WITHIN_S", 0.0)
    forks.start()
    os.kill(forks.child.process_id, signal.SIGSTOP)
    eventually(lambda: forks.launcher.receive() or forks.child.exit_code is not None)


@pytest.mark.parametrize("is_sent", [False, True])
def test_an_order_may_be_cancelled_before_its_process_is_born(forks: Forks, is_sent: bool) -> None:
    os.kill(forks.child.process_id, signal.SIGSTOP)
    forks.order("one", "wait")
    forks.order("two", "return")
    cancelled = forks.ordered[0 if is_sent else 1]
    cancelled.terminate()
    assert cancelled.exit_code == -15
    cancelled.kill()


def test_a_process_that_ends_again_and_again_before_the_pool_is_ready_is_given_up(
    loop: asyncio.AbstractEventLoop, logs: Path
) -> None:
    lives: list[int] = []

    async def live() -> None:
        processes = PoolProcesses([ProcessSpec("one", "no_such_module", ())], NO_MODELS, logs)
        supervising = processes.start(lambda each, *_: lives.append(each), is_member, print)
        try:
            async with asyncio.timeout(60):
                while True:
                    processes.require_startable()
                    await asyncio.sleep(0.01)
        finally:
            processes.close(1.0)
            await asyncio.wait([supervising])

    with pytest.raises(ProcessFailedError) as raised:
        loop.run_until_complete(live())
    assert len(lives) == 3
    assert "one has ended 3 times" in str(raised.value)
    assert str(logs / "one.log") in str(raised.value)


def test_a_process_that_hangs_outside_of_the_pool_is_killed_and_started_anew(
    loop: asyncio.AbstractEventLoop, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_processes, "FORK_SERVER", "forker")
    ended: list[int] = []
    stopped: list[int] = []
    members: set[int] = set()

    async def live() -> None:
        specs = [ProcessSpec(name, "work", ("wait", str(logs / "gate"))) for name in ("one", "two")]
        processes = PoolProcesses(specs, NO_MODELS, logs)
        processes.is_begun = True
        supervising = processes.start(
            lambda _, child: ended.append(child.process_id),
            lambda credential: processes._child(credential).process_id in members,
            print,
        )
        async with asyncio.timeout(60):
            for name, joins in (("one", True), ("two", False)):
                while (ready := words_of(logs / f"{name}.out"))[:1] != ["READY"]:
                    await asyncio.sleep(0.01)
                (members.add if joins else stopped.append)(int(ready[2]))
            os.kill(stopped[0], signal.SIGSTOP)
            monkeypatch.setattr(pool_processes, "JOINS_WITHIN_S", 0.1)
            while not ended:
                await asyncio.sleep(0.01)
        processes.close(1.0)
        await asyncio.wait([supervising])

    loop.run_until_complete(live())
    assert ended[0] == stopped[0]
    assert members.isdisjoint(ended)


def is_member(*_: object) -> bool:
    return True


def words_of(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
