"""``dist-net bench training``: one process, and clusters, beside the peers, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dist_net.benchmark import synthetic
from dist_net.benchmark.peers.runner import PeerResult, measure_peer
from dist_net.benchmark.peers.task import Case
from dist_net.benchmark.timing import training_case
from dist_net.errors import BenchmarkError

EPOCHS = 12
CLUSTERS = ((1, 32), (2, 32), (1, 128), (2, 128))
DEADLINE_S = 300.0
TRAINING_PEERS = ("single_process", "hand_written", "pytorch_eager", "pytorch_ddp", "keras_fit")


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    The yardstick by hand in NumPy counts as a peer, and is measured with or without the others.
    Raises BenchmarkError if a measurement fails.
    """
    names = TRAINING_PEERS if with_peers else TRAINING_PEERS[:2]
    measured: dict[str, PeerResult] = {}
    for name in names:
        say(f"measuring {name}")
        measured[name] = measure_peer(name)
        if measured[name].unavailable:
            say(f"  left out: {measured[name].unavailable}")
    results = list(measured.pop("single_process").cases)
    for workers, batch_size in CLUSTERS:
        say(f"measuring {workers} worker{'s'[: workers - 1]} at batch size {batch_size}")
        results.append(measure_cluster(workers, batch_size))
    peers = [
        {"peer": result.name, "version": result.version, **case}
        for result in measured.values()
        for case in result.cases
    ]
    return {"results": results, "peers": peers, "ratios": ratios(results, measured)}


def measure_cluster(workers: int, batch_size: int) -> Case:
    """The median speed over the twentieths of ``EPOCHS`` epochs of ``dist-net train``.

    The first epoch is left out, in which workers join.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "run"
        command = [sys.executable, "-m", "dist_net", "train", synthetic.__file__]
        command += ["--workers", str(workers), "--batch-size", str(batch_size)]
        command += ["--epochs", str(EPOCHS), "--run-dir", str(directory)]
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        if finished.returncode != 0:
            raise BenchmarkError(f"{' '.join(command)} failed: {finished.stderr.strip()}")
        records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        speeds = [
            record["samples_per_s"]
            for record in records
            if record["kind"] == "train" and record["epoch"] > 1
        ]
    return training_case(workers, batch_size, 1e6 * workers * batch_size / median(speeds))


def ratios(results: list[Case], measured: dict[str, PeerResult]) -> dict[str, float]:
    """Ours to theirs: times a step of one process, and samples per second of two workers."""
    ours = {(case["workers"], case["batch_size"]): case for case in results}
    found = {
        f"us_per_step_batch_{case['batch_size']}_to_{name}": round(
            ours[0, case["batch_size"]]["us_per_step"] / case["us_per_step"], 3
        )
        for name, result in measured.items()
        for case in result.cases
        if case["workers"] == 0
    }
    for name, result in measured.items():
        for case in result.cases:
            if case["workers"] == 2:
                two = ours[2, case["batch_size"]]
                found[f"samples_per_s_2_workers_batch_{case['batch_size']}_to_{name}"] = round(
                    two["samples_per_s"] / case["samples_per_s"], 3
                )
    found["samples_per_s_2_workers_batch_128_to_single_process"] = round(
        ours[2, 128]["samples_per_s"] / ours[0, 128]["samples_per_s"], 3
    )
    return found
