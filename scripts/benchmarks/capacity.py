"""``scripts/bench capacity``: predictions of ``dist-net simulate`` beside real runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import synthetic
from benchmarks.training import run_command, train_records

ROUNDS = 3  # in turn, because the speed of a shared machine drifts
WORKERS = (1, 2, 4)
BATCH_SIZES = (32, 128)

Cluster = tuple[int, int]
"""A number of workers, and a batch size."""


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:  # noqa: ARG001
    """Return ``results``, ``peers`` (none) and ``ratios`` (predicted to measured speed).

    Raises BenchmarkError if a run fails.
    """
    clusters = [(workers, batch_size) for batch_size in BATCH_SIZES for workers in WORKERS]
    predicted: dict[Cluster, list[float]] = {cluster: [] for cluster in clusters}
    measured: dict[Cluster, list[float]] = {cluster: [] for cluster in clusters}
    for turn in range(1, ROUNDS + 1):
        for workers, batch_size in clusters:
            say(f"round {turn} of {ROUNDS}: workers {workers}, batch size {batch_size}")
            predicted[workers, batch_size].append(predict(workers, batch_size))
            records = train_records(workers, batch_size)
            measured[workers, batch_size].append(median(each["samples_per_s"] for each in records))
    results = [case(each, predicted[each], measured[each]) for each in clusters]
    return {"results": results, "peers": [], "ratios": ratios(results)}


def predict(workers: int, batch_size: int) -> float:
    """Return the samples per second that ``dist-net simulate`` predicts, from steps timed now."""
    command = [sys.executable, "-m", "dist_net", "simulate", synthetic.__file__, "--json"]
    command += ["--batch-size", str(batch_size), "--workers", str(workers)]
    *_, last = json.loads(run_command(command))["predictions"]
    return float(last["samples_per_s"])


def case(cluster: Cluster, predicted: list[float], measured: list[float]) -> dict[str, Any]:
    workers, batch_size = cluster
    return {
        "workers": workers,
        "batch_size": batch_size,
        "predicted_samples_per_s": round(median(predicted)),
        "samples_per_s": round(median(measured)),
    }


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return predicted to measured samples per second."""
    return {
        f"predicted_to_measured_{each['workers']}_workers_batch_{each['batch_size']}": round(
            each["predicted_samples_per_s"] / each["samples_per_s"], 3
        )
        for each in results
    }
