"""A run on a Ray cluster of several nodes: placed, watched, and exact when nodes come and go."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ray_nodes import RayNodes
from dist_net import Client
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.observer import Observer
from dist_net.wire.security import OPERATOR, load_peer_keys
from journaled import assert_each_sample_once

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]
Report = dict[str, Any]

SAMPLES = 256


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest) -> Iterator[RayNodes]:
    """A cluster whose first node has no CPUs, unless a test's parameter gives it some."""
    with RayNodes(getattr(request, "param", 0)) as made:
        yield made


class Training:
    """A run on that cluster."""

    def __init__(self, command: Any, run: Path, eventually: Eventually, nodes: RayNodes) -> None:
        self.command = command
        self.run = run
        self._eventually = eventually
        self._nodes = nodes

    def report(self, holds: Callable[[Report], bool]) -> Report:
        """Waits for a report of the server that is there last, which is like this."""

        def matching() -> Report | None:
            address, keys = re.findall(r"status (\w+://\S+) --keys (\S+)", self.command.stderr)[-1]
            try:
                with Observer(address, load_peer_keys(Path(keys), OPERATOR), 1.0) as observer:
                    report = observer.status()
            except Exception:
                assert self.command.process.poll() is None, self.command.stderr
                return None
            return report if holds(report) else None

        self.command.says(r"status \w+://")
        found: Report = self._eventually(matching)
        return found

    @property
    def processes(self) -> dict[str, int]:
        """The ids of its processes, on whatever node, by name."""
        found = {}
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = cmdline.read_text(errors="replace").split("\0")
            except OSError:
                continue
            process_id = int(cmdline.parent.name)
            if (
                "-m" in words
                and "--parent" in words
                and self._nodes.process_id in above(process_id)
            ):
                name = "standby" if "--follow" in words else "server"
                name = words[words.index("--name") + 1] if "--name" in words else name
                found[name] = process_id
        return found

    def is_copied(self, report: Report) -> bool:
        """Whether the standby has a copy of a version with results."""
        behind = [each["versions_behind"] for each in report["standbys"]]
        return bool(behind) and report["version"] > behind[0]

    def log(self, name: str) -> str:
        return (self.run / "logs" / f"{name}.log").read_text()


def above(process_id: int) -> list[int]:
    """The ids of a process's parent, of its parent, and so on."""
    found = [process_id]
    while found[-1] > 1:
        try:
            status = Path(f"/proc/{found[-1]}/stat").read_text()
        except OSError:
            break
        found.append(int(status.rpartition(")")[2].split()[1]))
    return found[1:]


@pytest.fixture
def train(
    start: Start, nodes: RayNodes, counting: str, tmp_path: Path, eventually: Eventually
) -> Callable[..., Training]:
    def start_training(*options: str) -> Training:
        run = tmp_path / "run"
        words = ("--cluster", "ray", "--address", nodes.address, "--run-dir", str(run), "--json")
        return Training(start("train", counting, *words, *options), run, eventually, nodes)

    return start_training


@pytest.fixture
def node(nodes: RayNodes) -> Iterator[Callable[[int], str]]:
    """Adds nodes, which are removed after the test."""
    added: list[str] = []

    def add(cpus: int) -> str:
        added.append(nodes.add(cpus))
        return added[-1]

    yield add
    for each in added:
        nodes.remove(each)


def assert_exact(run: Path, epochs: int) -> None:
    assert assert_each_sample_once(run, SAMPLES) == epochs


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_run_is_placed_by_cpus_and_shares_memory_on_the_servers_node(
    train: Callable[..., Training], node: Callable[[int], str], nodes: RayNodes, start: Start
) -> None:
    node(2)
    training = train("--workers", "3", "--epochs", "100000")
    training.report(lambda report: len(report["workers"]) == 3 and report["samples"] > SAMPLES)
    training.command.process.send_signal(signal.SIGINT)
    assert training.command.ends() == 130
    assert assert_each_sample_once(training.run, SAMPLES) >= 1
    # A worker that a loaded machine keeps from sending heartbeats joins again, and counts twice.
    joined = r"worker_joined .*shared=(\w+) name=(\S+)"
    found = re.findall(joined, training.log("parameter-server"))
    shares_memory = {name: shared for shared, name in found}
    assert sorted(shares_memory) == ["worker-0", "worker-1", "worker-2"]
    assert sorted(shares_memory.values()) == ["False", "False", "True"]
    # The log of a worker that was replaced begins anew.
    assert any("joined worker=" in training.log(name) for name in shares_memory)
    too_many = start("train", "--cluster", "ray", "--address", nodes.address, "--workers", "4")
    assert too_many.ends() == 2
    assert re.search("4 workers.* 5 CPUs.* 4", too_many.stderr)


@pytest.mark.slow
def test_workers_follow_nodes_that_come_and_go(
    train: Callable[..., Training], node: Callable[[int], str], nodes: RayNodes
) -> None:
    node(2)
    training = train("--workers", "auto", "--epochs", "3000")
    training.report(lambda report: len(report["workers"]) == 1 and report["samples"] > SAMPLES)
    added = nodes.add(2)
    training.report(lambda report: len(report["workers"]) == 3)
    before = training.report(lambda report: report["samples"] > 0)
    removed_s = time.monotonic()
    nodes.kill(added)
    after = training.report(
        lambda report: report["workers_lost"] == 2 and report["samples"] > before["samples"]
    )
    print(f"after {time.monotonic() - removed_s:.1f} s {after['samples_per_s']:.0f} samples/s")
    training.command.says("node is gone")
    training.report(lambda report: len(report["workers"]) == 1)
    training.command.process.send_signal(signal.SIGINT)
    assert training.command.ends() == 130
    assert "--cluster ray --workers auto" in training.command.stderr
    assert not training.processes


@pytest.mark.slow
def test_a_run_outlives_the_nodes_of_its_servers_without_shared_storage(
    train: Callable[..., Training],
    node: Callable[[int], str],
    nodes: RayNodes,
    start: Start,
) -> None:
    servers_node = nodes.add(2)
    training = train("--workers", "1", "--epochs", "600")
    for starts in (2, 3):
        before = training.report(training.is_copied)
        assert set(training.processes) == {"server", "standby", "worker-0"}
        next_node = nodes.add(2) if starts == 2 else node(2)
        lost_s = time.monotonic()
        nodes.kill(servers_node)
        after = training.report(
            lambda report, before=before: report["term"] != before["term"] and report["workers"]
        )
        print(f"a server again after {time.monotonic() - lost_s:.1f} s")
        assert after["server_starts"] == starts
        servers_node = next_node
    result = training.command.result()
    assert result["samples"] == 600 * SAMPLES
    assert_exact(training.run, 600)
    assert start("replay", str(training.run), "--trust-recipe", "--json").result()["matches"]
    last = read_checkpoint(training.run / "checkpoint.safetensors")
    assert last.version == result["pushes_applied"]


@pytest.mark.slow
def test_nothing_is_left_of_a_run_whose_command_is_killed(
    train: Callable[..., Training], node: Callable[[int], str], eventually: Eventually
) -> None:
    node(3)
    training = train("--workers", "2", "--epochs", "30000")
    training.report(training.is_copied)
    assert set(training.processes) == {"server", "standby", "worker-0", "worker-1"}
    training.command.process.kill()
    eventually(lambda: not training.processes)
    assert read_checkpoint(training.run / "checkpoint.safetensors").version > 0


@pytest.mark.slow
def test_a_pool_has_its_workers_on_the_nodes(
    train: Callable[..., Training],
    node: Callable[[int], str],
    nodes: RayNodes,
    start: Start,
    eventually: Eventually,
) -> None:
    first = nodes.add(2)
    training = train("--workers", "1", "--epochs", "2")
    training.command.result()
    pool = start(
        *("serve", f"counts={training.run}", "--trust-recipe"),
        *("--cluster", "ray", "--address", nodes.address, "--workers", "auto"),
        *("--http", "127.0.0.1:0"),
    )
    (address,) = eventually(lambda: re.findall(r"READY http=(\S+)", pool.stdout))

    def idle() -> list[str]:
        with Client(address) as client:
            workers = client.status()["workers"]
        return [each["name"] for each in workers if each["state"] == "idle"]

    eventually(lambda: len(idle()) == 2)
    node(1)
    nodes.kill(first)
    eventually(lambda: idle() == ["worker-2"])
    pool.process.terminate()
    assert pool.ends() == 0
