"""``scripts/bench convergence``: what a number of workers and a consistency cost in accuracy.

The shipped state machines of server and workers in virtual time, with the recipe's own gradients,
one after the other in one thread. A worker needs a millisecond for a step, the slowest a fifth
more; messages take 50 microseconds, and the server needs no time.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import Any

import numpy as np

from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import LoadedRecipe, load_recipe
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.run_state import RunState
from dist_net.training.worker.state import Compute
from dist_net.training.worker.step import TrainingStep
from dist_net.vector import Vector
from simulation.timed_cluster import TimedCluster

RATES = {"sgd": 0.05, "momentum": 0.005, "adam": 0.0004}
"""The same for any number of workers; momentum of 0.9 makes ten times its rate of it."""

FASTEST_STEP_S, SLOWEST_STEP_S = 0.0010, 0.0012


@dataclass(frozen=True)
class Case:
    """A run; ``consistency`` is as in ``dist-net train``."""

    optimizer: str
    consistency: str
    workers: int
    epochs: int
    seed: int


def add_arguments(parser: ArgumentParser) -> None:
    """Declares which runs are made."""
    of_runs = parser.add_argument_group("of convergence")
    of_runs.add_argument("--recipe", default="fashion-mnist")
    of_runs.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 16])
    of_runs.add_argument(
        "--consistency", nargs="+", default=["bsp", "ssp:4", "async", "auto"], metavar="MODE"
    )
    of_runs.add_argument("--optimizers", nargs="+", default=list(RATES), choices=RATES)
    of_runs.add_argument("--seeds", type=int, default=5, metavar="N")
    of_runs.add_argument("--epochs", type=int, default=10, metavar="N")
    of_runs.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="add each run to this file, and make none that is there already",
    )


def measure(arguments: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``: the runs of each case, over all seeds."""
    loaded = load_recipe(arguments.recipe)
    dataset = loaded.recipe.load_dataset()
    done = dict(_runs_in(arguments.runs))
    seeds, optimizers = range(arguments.seeds), arguments.optimizers
    cases = [
        Case(optimizer, consistency, workers, arguments.epochs, seed)
        for seed, optimizer, workers, consistency in product(
            seeds, optimizers, arguments.workers, arguments.consistency
        )
    ]
    for number, case in enumerate(cases, 1):
        if case not in done:
            done[case] = _run(case, loaded, dataset)
            _keep(arguments.runs, case, done[case])
        accuracy = done[case]["test_accuracy"]
        say(f"{number} of {len(cases)}: {case} gives {100 * accuracy:.2f} %")
    groups: dict[Case, list[dict[str, float]]] = {}
    for case in cases:
        groups.setdefault(replace(case, seed=0), []).append(done[case])
    return {"results": [_summary(case, runs) for case, runs in groups.items()]}


def _summary(case: Case, runs: Iterable[dict[str, float]]) -> dict[str, Any]:
    figures = {name: [run[name] for run in runs] for name in next(iter(runs))}
    accuracies = [100 * accuracy for accuracy in figures["test_accuracy"]]
    return {
        "optimizer": case.optimizer,
        "consistency": case.consistency,
        "workers": case.workers,
        "epochs": case.epochs,
        "test_accuracy": round(median(accuracies), 2),
        "lowest": round(min(accuracies), 2),
        "highest": round(max(accuracies), 2),
        "staleness_mean": round(mean(figures["staleness_mean"]), 1),
        "virtual_seconds": round(median(figures["virtual_seconds"]), 2),
        "seconds": round(median(figures["seconds"]), 1),
    }


def _runs_in(path: Path | None) -> Iterator[tuple[Case, dict[str, float]]]:
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            kept = json.loads(line)
            yield Case(**kept["case"]), kept["figures"]


def _keep(path: Path | None, case: Case, figures: dict[str, float]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"case": vars(case), "figures": figures}) + "\n")


def _run(case: Case, loaded: LoadedRecipe, dataset: Dataset) -> dict[str, float]:
    """Trains in virtual time, and gives what came of it."""
    began_s = process_time()
    recipe, workers = loaded.recipe, case.workers
    options = RunOptions(
        loaded.reference,
        epochs=case.epochs,
        optimizer=case.optimizer,
        learning_rate=RATES[case.optimizer],
        consistency=f"bsp:{workers}" if case.consistency == "bsp" else case.consistency,
        seed=case.seed,
    )
    step = TrainingStep(recipe.model, dataset, case.seed)
    weights = recipe.initial_weights(case.seed)
    run = RunState(options.on(loaded, dataset).settings(loaded), weights)
    base, gradient = np.empty_like(weights), np.empty_like(weights)  # plans are bound to them

    def compute_gradient(compute: Compute, weights: Vector) -> tuple[float, int, Vector]:
        step.gather(compute.epoch, compute.start, compute.stop)
        np.copyto(base, weights)
        loss_sum, right = step.run(base, gradient)
        return loss_sum, right, gradient

    steps_s = np.linspace(FASTEST_STEP_S, SLOWEST_STEP_S, workers).tolist()
    virtual_s = TimedCluster(run, steps_s, compute_gradient).until_finished()
    accuracy = Evaluator(recipe.model, dataset)(run.store.evaluated_weights).accuracy
    if accuracy is None:
        raise ValueError(f"recipe {loaded.reference} has no classes: expected one that has")
    return {
        "test_accuracy": accuracy,
        "staleness_mean": run.report(0, 0.0)["staleness_mean"],
        "virtual_seconds": virtual_s,
        "seconds": process_time() - began_s,
    }
