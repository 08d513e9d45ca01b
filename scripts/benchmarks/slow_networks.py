"""``scripts/bench slow-networks``: two other hosts over a slow link, and one local worker.

The server has a network namespace, the two hosts another, which takes root and iproute2. A proxy
between them delays and limits each host's connections: see ``benchmarks.slow_link``. Server,
workers and proxy share the cores of this machine, so that the ratio is a lower bound.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, NamedTuple

from benchmarks.join import ADDRESS, PATIENCE_S, token_in, two_hosts
from benchmarks.recovery import wait_until
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Applied

HOSTS = 2
TURNS = 3
SERVER, PROXY, PORT = ADDRESS.format(1), ADDRESS.format(3), "5555"
LAST_S, POLL_S = 3600.0, 0.2


class Case(NamedTuple):
    """A recipe on a link. The speed is that of ``epochs``, after the first of the run."""

    recipe: str
    mbit_per_s: float
    round_trip_ms: float
    epochs: float


CASES = Case("fashion-mnist-conv", 10, 50, 1), Case("fashion-mnist", 100, 20, 5)


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none joins by a line")
    results, ratios = [], {}
    with ExitStack() as stack:
        hosts = two_hosts(stack)
        add_proxy_address(hosts[0])
        for case in CASES:
            turns = []
            for turn in range(1, TURNS + 1):
                alone, (together, lease) = local_speed(case), joined_speed(case, hosts)
                turns.append((alone, together))
                say(f"{case}: {turn} of {TURNS}: {alone:.0f}, {together:.0f}, lease {lease}")
            alone, together = (median(each) for each in zip(*turns, strict=True))
            speeds = {"local_samples_per_s": round(alone), "samples_per_s": round(together)}
            results.append(case._asdict() | {"hosts": HOSTS} | speeds | {"lease_samples": lease})
            ratio = median(together / alone for alone, together in turns)
            ratios[f"{case.recipe}, {case.mbit_per_s:g} Mbit/s, to one local"] = round(ratio, 2)
    return {"results": results, "peers": [], "ratios": ratios}


def add_proxy_address(host: list[str]) -> None:
    """Give the server's host a second address, where the proxy listens."""
    subprocess.run([*host, "ip", "address", "add", f"{PROXY}/24", "dev", "wire"], check=True)


def local_speed(case: Case) -> float:
    """Samples per second of one worker on the server's host."""
    with TemporaryDirectory() as directory:
        run = RunDirectory(Path(directory) / "run")
        train = [*dist_net("train", case.recipe), "--workers", "1", "--run-dir", str(run.path)]
        return speed_of(subprocess.Popen(train, stderr=subprocess.DEVNULL), run, case)


def joined_speed(case: Case, hosts: list[list[str]]) -> tuple[float, int]:
    """Samples per second of two other hosts, and those of the longest lease."""
    with ExitStack() as stack, TemporaryDirectory() as directory:

        def started(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, **streams)
            stack.callback(process.kill)
            return process

        run, said = RunDirectory(Path(directory) / "run"), Path(directory) / "said"
        proxy = [sys.executable, str(Path(__file__).with_name("slow_link.py")), PROXY, PORT]
        link = [SERVER, str(case.mbit_per_s), str(case.round_trip_ms)]
        started([*hosts[0], *proxy, *link], stderr=subprocess.DEVNULL)
        train = [*hosts[0], *dist_net("train", case.recipe), "--workers", "0"]
        train += ["--listen", f"tcp://{SERVER}:{PORT}", "--contact", PROXY]
        train += ["--local-steps", "auto", "--run-dir", str(run.path)]
        server = started(train, stderr=stack.enter_context(said.open("w")))
        wait_until(lambda: token_in(said) is not None, server)
        join = [*hosts[1], *dist_net("join"), token_in(said) or "", "--workers", "1"]
        for _ in range(HOSTS):
            started(join, stderr=subprocess.DEVNULL)
        speed = speed_of(server, run, case)
        records = list(read_journal(run.journal).records())
    return speed, max(each.steps.samples for each in records if isinstance(each, Applied))


def speed_of(train: subprocess.Popen[bytes], run: RunDirectory, case: Case) -> float:
    """End a run after its measured epochs; return their samples per second."""

    def records(epoch: float) -> list[dict[str, Any]]:
        sleep(POLL_S)
        return [each for each in run.read_metrics() if each.get("epoch", 0.0) >= epoch]

    try:
        wait_until(lambda: bool(records(1 + case.epochs)), train, LAST_S)
        first, last = records(1)[0], records(1 + case.epochs)[0]
    finally:
        train.send_signal(signal.SIGINT)
        train.wait(PATIENCE_S)
    seconds: float = last["seconds"] - first["seconds"]
    return float(last["samples"] - first["samples"]) / seconds


def dist_net(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dist_net", *words]
