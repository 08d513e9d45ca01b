"""Several hosts: network namespaces, each with an address of its own, joined by wires.

       10.77.0.1
┌────── server ──────┐
10.77.1.1      10.77.2.1
│                    │
10.77.1.2      10.77.2.2
worker 0       worker 1
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.round_plan import NOISE
from dist_net.wire.token import JoinToken
from journaled import assert_each_sample_once

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]

SLOW_LINK = Path(__file__).parents[2] / "scripts/benchmarks/slow_link.py"
SERVER = "10.77.0.1"
ESTABLISHED = "01"  # in /proc/net/tcp


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


class Hosts:
    """Namespaces of the names ``server``, ``worker-0`` and ``worker-1``."""

    def __init__(self, stack: ExitStack) -> None:
        for host in ("server", "worker-0", "worker-1"):
            name = self.name(host)
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.name("server"), "address", "add", SERVER, "dev", "lo")
        for number in (1, 2):
            server, worker = self.name("server"), self.name(f"worker-{number - 1}")
            wire = ["link", "add", f"wire{number}", "type", "veth"]
            ip("-n", server, *wire, "peer", "name", "wire", "netns", worker)
            for host, end, last in ((server, f"wire{number}", 1), (worker, "wire", 2)):
                ip("-n", host, "address", "add", f"10.77.{number}.{last}/24", "dev", end)
                ip("-n", host, "link", "set", end, "up")
            ip("-n", worker, "route", "add", "default", "via", f"10.77.{number}.1")

    def name(self, host: str) -> str:
        """Its own for each process that runs this test."""
        return f"dist-net-{os.getpid()}-{host}"

    def on(self, host: str) -> list[str]:
        """What runs a command on the host."""
        return ["ip", "netns", "exec", self.name(host)]

    def cut_off(self, host: str) -> None:
        """Pulls the host's wire."""
        ip("-n", self.name(host), "link", "set", "wire", "down")

    def connected_ports(self, process_id: int, host: str) -> set[int]:
        """The ports at which a process's host has connections of another host, open on its side."""
        theirs = socket.inet_aton(f"10.77.{int(host[-1]) + 1}.2")[::-1].hex().upper()
        table = Path(f"/proc/{process_id}/net/tcp").read_text().splitlines()[1:]
        columns = [line.split()[1:4] for line in table]  # own and other address, state
        return {
            int(own.partition(":")[2], 16)
            for own, other, state in columns
            if other.startswith(theirs) and state == ESTABLISHED
        }

    def connect(self, host: str) -> None:
        """Puts the wire of a worker's host back in."""
        name, server = self.name(host), f"10.77.{int(host[-1]) + 1}.1"
        ip("-n", name, "link", "set", "wire", "up")
        ip("-n", name, "route", "replace", "default", "via", server)  # it went with the wire


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2, to make network namespaces")
    with ExitStack() as stack:
        try:
            hosts = Hosts(stack)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot make network namespaces here: {error.stderr.strip()}")
        yield hosts


@pytest.fixture
def keys(here: Callable[..., Any], tmp_path: Path) -> Path:
    """The directory of the cluster's keys, and of those of another cluster beside it."""
    for name in ("keys", "others"):
        here("keys", "create", tmp_path / name)
    return tmp_path / "keys"


@pytest.fixture
def server(start: Start, hosts: Hosts, keys: Path, counting: str, tmp_path: Path) -> Any:
    """A parameter server on the host of that name."""
    return start(
        *("parameter-server", counting, "--epochs", "80", "--json"),
        *("--listen", f"tcp://{SERVER}:0", "--keys", str(keys), "--run-dir", str(tmp_path / "run")),
        prefix=hosts.on("server"),
    )


def test_a_host_is_cut_off_in_mid_run_and_comes_back(
    start: Start,
    hosts: Hosts,
    keys: Path,
    server: Any,
    counting: str,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    address = server.says(rf"--connect (tcp://{SERVER}:\d+)")[1]
    workers = [
        start(
            *("worker", counting, "--connect", address, "--keys", str(keys / "worker")),
            *("--name", host),
            prefix=hosts.on(host),
        )
        for host in ("worker-0", "worker-1")
    ]
    server.report(
        lambda report: (
            len(report["workers"]) == 2
            and all(worker["pushes"] > 10 for worker in report["workers"])
        )
    )
    workers[0].process.send_signal(signal.SIGSTOP)  # so that there is work left
    hosts.cut_off("worker-1")
    workers[1].says(rf"rejoining server={address} reason=.*\b\d+\.\d s")
    server.report(lambda report: not report["workers"])
    eventually(lambda: not hosts.connected_ports(server.process.pid, "worker-1"))
    hosts.connect("worker-1")
    server.report(lambda report: [each["name"] for each in report["workers"]] == ["worker-1"])
    workers[0].process.send_signal(signal.SIGCONT)

    report = server.result()
    assert [worker.ends() for worker in workers] == [0, 0]
    assert "Traceback" not in workers[1].stderr
    assert report["workers_joined"] - report["workers_lost"] == 2
    assert assert_each_sample_once(tmp_path / "run", 256) == 80


@pytest.mark.main_path
def test_another_host_joins_by_the_line_that_was_printed_until_that_is_taken_back(
    start: Start, hosts: Hosts, counting: str, tmp_path: Path
) -> None:
    run = tmp_path / "opened"
    server = start(
        *("train", counting, "--workers", "0", "--epochs", "100000", "--run-dir", str(run)),
        *("--listen", "tcp://0.0.0.0:0", "--json"),
        prefix=hosts.on("server"),
    )
    token = server.says(r"    echo (\w+) \| dist-net join\n")[1]

    # Whoever trained with a recipe trusts it: this is another user.
    other = ("env", f"XDG_DATA_HOME={tmp_path / 'other'}")
    untrusted = start("join", token, prefix=[*hosts.on("worker-0"), *other])
    assert untrusted.ends() == 2
    assert re.search(r"recipe\.py.*SHA-256 \w+.*--trust-recipe", untrusted.stderr)

    joined = start(
        *("join", token, "--workers", "2", "--trust-recipe"),
        prefix=[*hosts.on("worker-0"), *other],
    )
    joined.says(r"joining tcp://10\.77\.\d\.1:\d+ with 2 workers")
    server.report(
        lambda report: (
            [each["processes"] for each in report["workers"]] == [2]
            and report["workers"][0]["pushes"] > 0
        )
    )
    os.kill(joined.children[f"{socket.gethostname()}-0"], signal.SIGKILL)
    joined.says(r"worker-0: .*code -9 .*restarting")
    server.report(lambda report: len(report["workers"]) == 1 and report["workers_joined"] >= 2)

    assert start("keys", "revoke", str(run), JoinToken.parse(token).identity).ends() == 0
    assert joined.ends() == 1
    assert "revoked" in joined.stderr
    again = start("join", token, "--trust-recipe", prefix=hosts.on("worker-1"))
    assert again.ends() == 2
    assert "revoked" in again.stderr
    for command in (untrusted, joined, again):
        assert "Traceback" not in command.stderr
    server.process.send_signal(signal.SIGINT)
    assert server.ends() == 130


def test_a_hosts_processes_exchange_once_and_lose_nothing_when_one_of_them_is_killed(
    start: Start, here: Callable[..., Any], hosts: Hosts, tmp_path: Path
) -> None:
    run, epochs = tmp_path / "run", 400
    server = start(
        *("train", "digits", "--workers", "0", "--epochs", str(epochs), "--local-steps", "8"),
        *("--listen", "tcp://0.0.0.0:0", "--run-dir", str(run), "--json"),
        prefix=hosts.on("server"),
    )
    token = server.says(r"    echo (\w+) \| dist-net join\n")[1]
    kept = tmp_path / "dist-net" / "joined" / JoinToken.parse(token).identity
    kept.mkdir(parents=True)  # as if it had joined before
    own_cache = "env", f"XDG_CACHE_HOME={tmp_path}"
    joined = [
        start(
            "join", token, "--workers", str(count), prefix=[*hosts.on(f"worker-{host}"), *own_cache]
        )
        for host, count in enumerate((1, 3))
    ]
    report = server.report(
        lambda report: (
            len(report["workers"]) == 2 and all(each["pushes"] > 3 for each in report["workers"])
        )
    )
    assert sorted(each["processes"] for each in report["workers"]) == [1, 3]
    worker = joined[1].children[f"{socket.gethostname()}-0"]
    parts = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    assert len(parts) == 3
    os.kill(int(parts[1]), signal.SIGKILL)
    joined[1].says(r"worker-0: .*restarting")
    server.report(lambda report: [each["processes"] for each in report["workers"][1:]] == [3])

    result = server.result()
    assert [each.ends() for each in joined] == [0, 0]
    assert not kept.exists()
    assert result["samples"] == epochs * 1437
    assert result["bytes_sent_per_sample"] > 0
    assert here("replay", run, "--json")["matches"]


def test_automatic_local_steps_lengthen_leases_on_a_slow_link_and_say_that_it_does_not_pay_off(
    start: Start, here: Callable[..., Any], hosts: Hosts, tmp_path: Path
) -> None:
    run, proxy, epochs = tmp_path / "run", "10.77.1.3", 25
    ip("-n", hosts.name("server"), "address", "add", f"{proxy}/24", "dev", "wire1")
    server = start(
        *("train", "digits", "--workers", "0", "--epochs", str(epochs), "--local-steps", "auto"),
        *("--listen", "tcp://10.77.1.1:5555", "--contact", proxy),
        *("--run-dir", str(run), "--json"),
        prefix=hosts.on("server"),
    )
    token = server.says(r"    echo (\w+) \| dist-net join\n")[1]
    link = [sys.executable, str(SLOW_LINK), proxy, "5555", "10.77.1.1", "10", "100"]
    with subprocess.Popen([*hosts.on("server"), *link]) as carrying:
        try:
            joined = start("join", token, "--workers", "2", prefix=hosts.on("worker-0"))
            server.says("does not pay off")
            result = server.result()
            assert joined.ends() == 0
        finally:
            carrying.terminate()
    assert result["samples"] == epochs * 1437
    records = read_journal(run / "journal").records()
    lengths = [each.steps.samples for each in records if isinstance(each, Applied)]
    # The host's two processes share each minibatch of 32, so that each takes 16 samples of it.
    assert 1437 // 4 < max(lengths) <= 2 * NOISE * 16
    assert here("replay", run, "--json")["matches"]
