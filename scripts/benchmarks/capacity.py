"""``scripts/bench capacity``: what ``dist-net simulate`` predicts, beside real runs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import synthetic
from benchmarks.training import measure_cluster
from dist_net.cluster.cores import available_cores
from dist_net.cluster.local_run import LocalRunSettings
from dist_net.cluster.measuring import measure_step, measure_transport
from dist_net.recipes.recipe import load_recipe
from dist_net.simulation.capacity import ClusterPlan, PlannedCluster
from dist_net.simulation.costs import Network, TransportCosts

ROUNDS = 3  # in turn, because the speed of a shared machine drifts
WORKERS = (1, 2, 4)
BATCH_SIZES = (32, 128)

Cluster = tuple[int, int]
"""Workers and batch size."""


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:  # noqa: ARG001
    """``results``, ``peers`` (none) and ``ratios``, of predicted to measured samples per second.

    Raises BenchmarkError if a run fails.
    """
    clusters = [(workers, batch_size) for batch_size in BATCH_SIZES for workers in WORKERS]
    predicted: dict[Cluster, list[float]] = {cluster: [] for cluster in clusters}
    measured: dict[Cluster, list[float]] = {cluster: [] for cluster in clusters}
    for turn in range(1, ROUNDS + 1):
        say(f"round {turn} of {ROUNDS}: what a push costs")
        costs = measure_transport("shared memory", synthetic.recipe.model.layout.size, "sgd")
        for cluster in clusters:
            say(f"round {turn} of {ROUNDS}: workers {cluster[0]}, batch size {cluster[1]}")
            predicted[cluster].append(predict(*cluster, costs))
            measured[cluster].append(measure_cluster(*cluster)["samples_per_s"])
    results = [
        {
            "workers": workers,
            "batch_size": batch_size,
            "predicted_samples_per_s": round(median(predicted[workers, batch_size])),
            "samples_per_s": round(median(measured[workers, batch_size])),
        }
        for workers, batch_size in clusters
    ]
    ratios = {
        f"predicted_to_measured_{each['workers']}_workers_batch_{each['batch_size']}": round(
            each["predicted_samples_per_s"] / each["samples_per_s"], 3
        )
        for each in results
    }
    return {"results": results, "peers": [], "ratios": ratios}


def predict(workers: int, batch_size: int, costs: TransportCosts) -> float:
    """Samples per second, by a step that is timed now."""
    loaded = load_recipe(synthetic.__file__)
    threads = LocalRunSettings(workers).threads
    step_s = measure_step(loaded, loaded.recipe.load_dataset(), batch_size, threads)
    size = loaded.recipe.model.layout.size
    cores = available_cores()
    plan = ClusterPlan(workers, step_s, batch_size, size, Network(), costs, threads, cores)
    return PlannedCluster(plan).predict().samples_per_s
