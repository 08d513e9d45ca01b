"""``scripts/bench capacity``: what ``dist-net simulate`` predicts, beside real runs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from benchmarks import synthetic
from benchmarks.training import train_records
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.processes.cores import available_cores
from dist_net.processes.roles import share_of_cores
from dist_net.training.planner.capacity import ClusterPlan, PlannedCluster
from dist_net.training.planner.costs import Network, TransportCosts
from dist_net.training.run.measuring import measure_step, measure_transport

ROUNDS = 3  # in turn, because the speed of a shared machine drifts
WORKERS = (1, 2, 4)
BATCH_SIZES = (32, 128)


class Outcome(NamedTuple):
    """What was predicted or measured, or the median of several."""

    samples_per_s: float
    staleness_mean: float


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:  # noqa: ARG001
    """``results``, ``peers`` (none) and ``ratios``, of predicted to measured samples per second.

    Raises BenchmarkError if a run fails.
    """
    clusters = [(workers, batch_size) for batch_size in BATCH_SIZES for workers in WORKERS]
    predicted: dict[tuple[int, int], list[Outcome]] = {cluster: [] for cluster in clusters}
    measured: dict[tuple[int, int], list[Outcome]] = {cluster: [] for cluster in clusters}
    for turn in range(1, ROUNDS + 1):
        say(f"round {turn} of {ROUNDS}: what a push costs")
        costs = measure_transport("shared memory", synthetic.recipe.model.layout.size, "sgd")
        for cluster in clusters:
            say(f"round {turn} of {ROUNDS}: workers {cluster[0]}, batch size {cluster[1]}")
            predicted[cluster].append(predict(*cluster, costs))
            measured[cluster].append(run(*cluster))
    results = [case(*each, predicted[each], measured[each]) for each in clusters]
    return {"results": results, "peers": [], "ratios": ratios(results)}


def predict(workers: int, batch_size: int, costs: TransportCosts) -> Outcome:
    """By these costs, and a step that is timed now."""
    loaded = load_recipe(synthetic.__file__)
    threads = share_of_cores(workers)
    step_s = measure_step(loaded, loaded.recipe.load_dataset(), batch_size, threads)
    size, cores = loaded.recipe.model.layout.size, available_cores()
    plan = ClusterPlan(workers, step_s, batch_size, size, Network(), costs, threads, cores)
    predicted = PlannedCluster(plan).predict()
    return Outcome(predicted.samples_per_s, predicted.staleness_mean)


def run(workers: int, batch_size: int) -> Outcome:
    """By a run of real processes; raises BenchmarkError."""
    records = train_records(workers, batch_size)
    return middle_of([Outcome(each["samples_per_s"], each["staleness_mean"]) for each in records])


def middle_of(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*map(median, zip(*outcomes, strict=True)))


def case(
    workers: int, batch_size: int, predicted: list[Outcome], measured: list[Outcome]
) -> dict[str, Any]:
    ours, real = middle_of(predicted), middle_of(measured)
    return {
        "workers": workers,
        "batch_size": batch_size,
        "predicted_samples_per_s": round(ours.samples_per_s),
        "samples_per_s": round(real.samples_per_s),
        "predicted_staleness_mean": round(ours.staleness_mean, 2),
        "staleness_mean": round(real.staleness_mean, 2),
    }


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Of predicted to measured samples per second."""
    return {
        f"predicted_to_measured_{each['workers']}_workers_batch_{each['batch_size']}": round(
            each["predicted_samples_per_s"] / each["samples_per_s"], 3
        )
        for each in results
    }
