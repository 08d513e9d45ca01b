"""``scripts/bench ray``: a run on a Ray cluster beside the same run with local processes.

Speed once it runs, how soon it runs, and how soon it goes on when the server's node was lost. The
cluster is warm, and its nodes are on this host.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.ray_nodes import RayNodes
from benchmarks.recovery import PATIENCE_S, last_record, wait_until
from dist_net.training.server.journal import UNUSABLE, read_journal
from dist_net.training.server.journal_records import Applied

RECIPE = "fashion-mnist"
EPOCHS = 6
TURNS = 5
DIST_NET = (sys.executable, "-P", "-m", "dist_net", "train", RECIPE)


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none runs this on Ray")
    turns: dict[str, list[tuple[float, float]]] = {"local": [], "ray": []}
    cores = max(2, len(os.sched_getaffinity(0)))
    with RayNodes(head_cpus=cores) as nodes:
        options = {"local": (), "ray": ("--cluster", "ray", "--address", nodes.address)}
        for turn in range(1, TURNS + 1):
            for cluster, own in options.items():
                turns[cluster].append(run_once((*own, "--workers", str(cores - 1))))
                speed, began_s = turns[cluster][-1]
                say(f"turn {turn} of {TURNS}, {cluster}: {speed:,.0f} samples/s, {began_s:.2f} s")
    lost_s = []
    for turn in range(1, TURNS + 1):
        with RayNodes() as nodes:  # anew: Ray takes long to notice which nodes are gone
            lost_s.append(goes_on_after(nodes))
        say(f"turn {turn} of {TURNS}, the server's node lost: {lost_s[-1]:.2f} s")
    results: list[dict[str, Any]] = [
        {
            "cluster": cluster,
            "workers": cores - 1,
            "samples_per_s": round(median(speed for speed, _ in measured)),
            "first_update_s": round(median(began_s for _, began_s in measured), 2),
        }
        for cluster, measured in turns.items()
    ]
    speeds = {each["cluster"]: each["samples_per_s"] for each in results}
    return {
        "results": results,
        "servers_node_lost": {"median_s": median(lost_s), "max_s": max(lost_s)},
        "peers": [],
        "ratios": {"ray_to_local": round(speeds["ray"] / speeds["local"], 3)},
    }


def run_once(options: Sequence[str]) -> tuple[float, float]:
    """Samples per second of a run, and the seconds until its first update."""
    with TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        words = (*DIST_NET, *options, "--epochs", str(EPOCHS), "--run-dir", str(run), "--json")
        began = monotonic()
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as train:
            wait_until(lambda: isinstance(last_record(run), Applied), train)
            began_s = monotonic() - began
            printed, said = train.communicate()
        if train.returncode != 0:
            raise BenchmarkError(said.decode(errors="replace").strip())
    return json.loads(printed.splitlines()[-1])["samples_per_s"], began_s


def starts_in(run: Path) -> int:
    """How many servers have written to the run's journal, or to its copy."""
    with suppress(*UNUSABLE):
        return len(list(read_journal(run / "journal").starts()))
    return 0


def goes_on_after(nodes: RayNodes) -> float:
    """Seconds from the loss of the server's node until the copied journal has the next update."""
    lost = nodes.add(2)
    with TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        words = ("--cluster", "ray", "--address", nodes.address, "--workers", "1")
        often = ("--epochs", "100000", "--checkpoint-every", "5", "--run-dir", str(run))
        train = subprocess.Popen((*DIST_NET, *words, *often), stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: isinstance(last_record(run), Applied), train)
            nodes.add(2)
            began = monotonic()
            nodes.kill(lost)
            wait_until(lambda: starts_in(run) > 1, train)
            wait_until(lambda: isinstance(last_record(run), Applied), train)
            gone_s = monotonic() - began
        finally:
            train.send_signal(signal.SIGINT)
            train.wait(PATIENCE_S)
    return round(gone_s, 2)
