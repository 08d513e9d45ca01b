"""``scripts/bench capacity``: predictions of ``dist-net simulate`` beside real runs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import synthetic
from benchmarks.training import EPOCHS, train_records
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.processes.cores import available_cores
from dist_net.processes.launcher import share_of_cores
from dist_net.training.planner.capacity import ClusterPlan
from dist_net.training.planner.costs import ClusterCosts, Network
from dist_net.training.run.measuring import measure_step, measure_transport
from dist_net.training.run.run_options import RunOptions

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
    """Return the predicted samples per second, from costs that are measured now."""
    loaded = load_recipe(synthetic.__file__)
    dataset, threads = loaded.recipe.load_dataset(), share_of_cores(workers)
    options = RunOptions(loaded.reference, batch_size=batch_size, epochs=EPOCHS)
    settings = options.on(loaded, dataset).settings(loaded)
    size, vectors = settings.vector_size, len(settings.optimizer.initial_state)
    shared_memory = measure_transport(True, size, vectors)
    costs = ClusterCosts(
        size,
        1 + vectors,
        batch_size,
        settings.minibatches,
        settings.epochs,
        threads,
        1e3 * measure_step(loaded, dataset, settings, threads),
        shared_memory,
        shared_memory,  # no exchange is over TCP
    )
    return ClusterPlan(workers, costs, Network(), available_cores()).predict().samples_per_s


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
