"""``scripts/bench slow-networks``: two other hosts over a slow link, and one local worker.

The server has a network namespace, the two hosts another, which takes root and iproute2. A proxy
between them delays and limits each host's connections: see ``benchmarks.slow_link``. Server,
workers and proxy share the cores of this machine, so that the ratio is a lower bound.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.errors import BenchmarkError
from benchmarks.join import ADDRESS, PATIENCE_S, token_in, two_hosts
from benchmarks.recovery import wait_until
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.server.journal import read_journal

HOSTS = 2
TURNS = 3
SERVER, PROXY, PORT = ADDRESS.format(1), ADDRESS.format(3), "5555"
LAST_S = 3600.0


class Case(NamedTuple):
    """A recipe on a link, and the epochs of each run."""

    recipe: str
    mbit_per_s: float
    round_trip_ms: float
    epochs: int


CASES = Case("fashion-mnist-conv", 10, 50, 6), Case("fashion-mnist", 100, 20, 45)


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none joins by a line")
    results, ratios = [], {}
    with ExitStack() as stack:
        hosts = two_hosts(stack)
        proxy_address = ["address", "add", f"{PROXY}/24", "dev", "wire"]
        subprocess.run([*hosts[0], "ip", *proxy_address], check=True)
        for case in CASES:
            turns = []
            for turn in range(1, TURNS + 1):
                local = trained(case, 1)
                joined = joined_hosts(case, hosts)
                turns.append((local["samples_per_s"], joined["samples_per_s"]))
                say(f"{case}: turn {turn} of {TURNS}: {local}, {joined}")
            alone, together = (median(each) for each in zip(*turns, strict=True))
            ratio = round(median(joined / local for local, joined in turns), 2)
            rates = {"local_samples_per_s": round(alone), "samples_per_s": round(together)}
            results.append(case._asdict() | {"hosts": HOSTS} | rates | joined)
            ratios[f"{case.recipe} at {case.mbit_per_s:g} Mbit/s to one local worker"] = ratio
    return {"results": results, "peers": [], "ratios": ratios}


def trained(case: Case, workers: int) -> dict[str, Any]:
    """The speed of a run of local workers."""
    with TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        train = [*dist_net("train", case.recipe), "--workers", str(workers), "--run-dir", str(run)]
        train += ["--epochs", str(case.epochs), "--json"]
        done = subprocess.run(train, capture_output=True, text=True, timeout=LAST_S)
    return speed_in(done.stdout)


def joined_hosts(case: Case, hosts: list[list[str]]) -> dict[str, Any]:
    """The speed of a run of two other hosts, the bytes per sample, and the last leases' length."""
    processes: list[subprocess.Popen[str]] = []
    with ExitStack() as stack, TemporaryDirectory() as directory:
        run, said = Path(directory) / "run", Path(directory) / "said"
        stack.callback(lambda: [process.kill() for process in processes])
        link = [str(case.mbit_per_s), str(case.round_trip_ms)]
        proxy = [sys.executable, str(Path(__file__).with_name("slow_link.py")), PROXY, PORT]
        processes.append(subprocess.Popen([*hosts[0], *proxy, SERVER, *link], text=True))
        train = [*hosts[0], *dist_net("train", case.recipe), "--workers", "0", "--json"]
        train += ["--listen", f"tcp://{SERVER}:{PORT}", "--contact", PROXY, "--run-dir", str(run)]
        train += ["--local-steps", "auto", "--epochs", str(case.epochs)]
        output = stack.enter_context(said.open("w"))
        server = subprocess.Popen(train, stdout=subprocess.PIPE, stderr=output, text=True)
        processes.append(server)
        wait_until(lambda: token_in(said) is not None, server)
        join = [*hosts[1], *dist_net("join"), token_in(said) or "", "--workers", "1"]
        for _ in range(HOSTS):
            processes.append(subprocess.Popen(join, stderr=subprocess.DEVNULL, text=True))
        speed = speed_in(server.communicate(timeout=LAST_S)[0])
        for process in processes[2:]:
            process.wait(PATIENCE_S)
        *_, last = read_journal(RunDirectory(run).journal).pushes()
    lengths = [] if not isinstance(last, tuple) else [each.stop - each.start for each in last]
    return speed | {"last_lease_samples": max(lengths, default=0)}


def speed_in(printed: str) -> dict[str, Any]:
    """The speed, the bytes per sample and the accuracy that a run has printed."""
    if not printed.strip():
        raise BenchmarkError("a run ended without a result")
    summary = json.loads(printed.splitlines()[-1])
    names = "bytes_received_per_sample", "bytes_sent_per_sample", "test_accuracy"
    return {name: summary[name] for name in ("samples_per_s", *names)}


def dist_net(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dist_net", *words]
