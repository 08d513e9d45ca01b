"""``scripts/bench training``: one process, and clusters, beside the peers, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import FINDS_BENCHMARKS, synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.peers.runner import PeerResult, measure_peer
from benchmarks.peers.task import Case
from benchmarks.timing import training_case

ROUNDS = 3  # in turn, because the speed of a shared machine drifts
EPOCHS = 10
CLUSTERS = ((1, 32), (2, 32), (1, 128), (2, 128))
DEADLINE_S = 300.0
TRAINING_PEERS = ("single_process", "hand_written", "pytorch_eager", "pytorch_ddp", "keras_fit")


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    The yardstick by hand in NumPy counts as a peer, and is measured with or without the others.
    Raises BenchmarkError if a measurement fails.
    """
    names = TRAINING_PEERS if with_peers else TRAINING_PEERS[:2]
    peers: dict[str, list[PeerResult]] = {name: [] for name in names}
    clusters: dict[tuple[int, int], list[Case]] = {cluster: [] for cluster in CLUSTERS}
    for turn in range(1, ROUNDS + 1):
        for name in names:
            say(f"round {turn} of {ROUNDS}: {name}")
            peers[name].append(measure_peer(name))
        for workers, batch_size in CLUSTERS:
            say(f"round {turn} of {ROUNDS}: workers {workers}, batch size {batch_size}")
            clusters[workers, batch_size].append(measure_cluster(workers, batch_size))
    cases = {name: medians([result.cases for result in of]) for name, of in peers.items()}
    for name, of in peers.items():
        if of[0].unavailable:
            say(f"left out {name}: {of[0].unavailable}")
    results = cases.pop("single_process") + medians(list(zip(*clusters.values(), strict=True)))
    return {
        "results": results,
        "peers": [
            {"peer": name, "version": peers[name][0].version, **case}
            for name, of in cases.items()
            for case in of
        ],
        "ratios": ratios(results, cases),
    }


def medians(rounds: Sequence[Sequence[Case]]) -> list[Case]:
    """Each case's median over the rounds, which list the same cases in the same order."""
    return [
        training_case(
            int(of[0]["workers"]),
            int(of[0]["batch_size"]),
            median(case["us_per_step"] for case in of),
        )
        for of in zip(*rounds, strict=True)
    ]


def measure_cluster(workers: int, batch_size: int) -> Case:
    """The median speed over the twentieths of ``EPOCHS`` epochs of ``dist-net train``."""
    speed = median(record["samples_per_s"] for record in train_records(workers, batch_size))
    return training_case(workers, batch_size, 1e6 * workers * batch_size / speed)


def train_records(workers: int, batch_size: int) -> list[dict[str, Any]]:
    """What a run of ``dist-net train`` says of each twentieth of its epochs but the first.

    In that workers join. Raises BenchmarkError.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "run"
        command = [sys.executable, "-m", "dist_net", "train", synthetic.__file__]
        command += ["--workers", str(workers), "--batch-size", str(batch_size)]
        command += ["--epochs", str(EPOCHS), "--run-dir", str(directory)]
        run_command(command)
        records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        return [each for each in records if each["kind"] == "train" and each["epoch"] > 1]


def run_command(command: list[str]) -> str:
    """Run a command that finds the recipe, and return its output. Raises BenchmarkError."""
    finished = subprocess.run(
        command,
        env=FINDS_BENCHMARKS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    if finished.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed: {finished.stderr.strip()}")
    return finished.stdout


def ratios(results: list[Case], peers: dict[str, list[Case]]) -> dict[str, float]:
    """Ours to theirs: times a step of one process, and samples per second of two workers."""
    ours = {(case["workers"], case["batch_size"]): case for case in results}
    found = {}
    for name, cases in peers.items():
        for case in cases:
            own = ours[case["workers"], case["batch_size"]]
            quantity = "samples_per_s" if case["workers"] else "us_per_step"
            workers = f"_{case['workers']}_workers" if case["workers"] else ""
            ratio = own[quantity] / case[quantity]
            found[f"{quantity}{workers}_batch_{case['batch_size']}_to_{name}"] = round(ratio, 3)
    found["samples_per_s_2_workers_batch_128_to_single_process"] = round(
        ours[2, 128]["samples_per_s"] / ours[0, 128]["samples_per_s"], 3
    )
    return found
