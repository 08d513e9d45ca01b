"""``scripts/bench convergence``: a cluster's accuracy and loss, compared with one process.

The shipped decisions of the server and the shipped local steps, with real gradients in virtual
time, one after the other in one thread. The recipes are those of users: nobody tuned them for a
cluster. One process computes the same as a cluster of one worker, bit for bit, so that the run with
one worker is the reference: of the same task, recipe, seed and number of samples.
"""

from __future__ import annotations

import heapq
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe, load_recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
from dist_net.optim import ConstantRate, Cosine, Optimizer, Schedule, optimizer_named
from dist_net.training.run.evaluation import Evaluation, Evaluator
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.run_state import RunState
from dist_net.training.server.state import ParameterServer, SendToPeer
from dist_net.training.worker.local_steps import LeaseSteps, LocalSteps
from dist_net.training.worker.step import local_steps
from dist_net.wire.messages import Join, Pull, Push, Welcome, Work

STEP_S, SPREAD = 0.001, 0.1
"""A step of the average worker; the speeds of the workers are spread evenly by ± 10 %."""

EXCHANGE_S = 0.0005


class Settings(NamedTuple):
    """An optimizer as a user writes it; None: the recipe's own settings."""

    optimizer: str
    learning_rate: float
    schedule: Schedule = ConstantRate()


RECIPES: dict[str, Settings | None] = {
    "adam": Settings("adam", 0.001),
    "sgd": Settings("sgd", 0.1),
    "momentum": Settings("momentum", 0.02),
    "adamw": Settings("adamw", 0.001, Cosine()),
    "own": None,
}


class Task(NamedTuple):
    """A net and its samples: ``recipe``, of whose training samples the first ``samples`` are used.

    ``hidden`` replaces the net by one with a hidden layer of this size.
    """

    recipe: str
    epochs: int
    samples: int | None = None
    hidden: int | None = None


TASKS = {
    "mlp": Task("fashion-mnist", 10, hidden=64),
    "own-mlp": Task("fashion-mnist", 10),
    "conv": Task("fashion-mnist-conv", 2),
    "digits": Task("digits", 20),
    "tuning": Task("digits", 12, samples=360),
}
"""``tuning`` takes 135 minibatches, as few as tuning a net on 360 photos."""


@dataclass(frozen=True)
class Case:
    """A run; ``churn``: one worker is replaced by a new one after every lease of the first."""

    task: str
    recipe: str
    consistency: str
    local_steps: int | None
    workers: int
    seed: int
    churn: bool = False


def add_arguments(parser: ArgumentParser) -> None:
    """Declare which runs are made."""
    of_runs = parser.add_argument_group("of convergence")
    of_runs.add_argument("--tasks", nargs="+", default=[*TASKS], choices=TASKS)
    of_runs.add_argument("--recipes", nargs="+", default=[*RECIPES], choices=RECIPES)
    of_runs.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    of_runs.add_argument("--consistency", nargs="+", default=["rounds"], metavar="MODE[:H]")
    of_runs.add_argument("--seeds", type=int, default=3, metavar="N")
    of_runs.add_argument("--churn", action="store_true", help="replace a worker after each lease")
    of_runs.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="add each run to this file, and make none that is there already",
    )


def measure(arguments: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``: each case relative to one process, as means over the seeds."""
    done = dict(_runs_in(arguments.runs))
    workers = sorted({1, *arguments.workers})
    results = []
    for task, recipe, mode in product(arguments.tasks, arguments.recipes, arguments.consistency):
        consistency, _, steps = mode.partition(":")
        for number in workers:
            runs = []
            for seed in range(arguments.seeds):
                how = consistency, int(steps) if steps else None
                if number == 1:
                    how = "rounds", None
                case = Case(task, recipe, *how, number, seed, arguments.churn and number > 1)
                if case not in done:
                    done[case] = _run(case)
                    _keep(arguments.runs, case, done[case])
                alone = done[
                    replace(case, consistency="rounds", local_steps=None, workers=1, churn=False)
                ]
                runs.append(_compared(done[case], alone))
            figures = {name: round(fmean(run[name] for run in runs), 3) for name in runs[0]}
            row = {"task": task, "recipe": recipe, "mode": mode, "workers": number, **figures}
            say(" ".join(map(str, row.values())))
            results.append(row)
    return {"results": results}


def _compared(run: dict[str, list[float]], alone: dict[str, list[float]]) -> dict[str, float]:
    """Compare the second half of two runs; ``speedup``: in the time to one process's final loss."""
    (loss, accuracy), (own_loss, own_accuracy) = (
        [fmean(of[name][len(of[name]) // 2 :]) for name in ("loss", "accuracy")]
        for of in (alone, run)
    )
    final = alone["loss"][-1]
    reached_s = [s for s, each in zip(run["seconds"], run["loss"], strict=True) if each <= final]
    first_s = next(
        s for s, each in zip(alone["seconds"], alone["loss"], strict=True) if each <= final
    )
    return {
        "accuracy": 100 * own_accuracy,
        "loss": own_loss,
        "points": 100 * (own_accuracy - accuracy),
        "loss_ratio": own_loss / loss,
        "last_points": 100 * (run["accuracy"][-1] - alone["accuracy"][-1]),
        "last_loss_ratio": run["loss"][-1] / alone["loss"][-1],
        "speedup": first_s / reached_s[0] if reached_s else 0.0,
        "updates": run["updates"][-1],
    }


def _runs_in(path: Path | None) -> Iterator[tuple[Case, dict[str, list[float]]]]:
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            kept = json.loads(line)
            yield Case(**kept["case"]), kept["figures"]


def _keep(path: Path | None, case: Case, figures: dict[str, list[float]]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"case": vars(case), "figures": figures}) + "\n")


def _loaded(case: Case) -> tuple[LoadedRecipe, Dataset]:
    task, settings = TASKS[case.task], RECIPES[case.recipe]
    loaded = load_recipe(task.recipe)
    recipe: Recipe = replace(loaded.recipe, epochs=task.epochs)
    if task.hidden is not None:
        layers = Rescale(), Flatten(), Dense(task.hidden, relu), Dense(10)
        recipe = replace(recipe, network=Sequential(*layers))
    if settings is not None:
        optimizer: Optimizer = optimizer_named(settings.optimizer)
        rate, schedule = settings.learning_rate, settings.schedule
        recipe = replace(recipe, optimizer=optimizer, learning_rate=rate, schedule=schedule)
        recipe = replace(recipe, batch_size=32)
    dataset = recipe.load_dataset()
    if task.samples is not None:
        inputs, targets = (
            np.asarray(each)[: task.samples]
            for each in (dataset.train_inputs, dataset.train_targets)
        )
        dataset = replace(dataset, train_inputs=inputs, train_targets=targets)
    return replace(loaded, recipe=recipe), dataset


def _run(case: Case) -> dict[str, list[float]]:
    """Train in virtual time; return the figures at the end of each half epoch."""
    loaded, dataset = _loaded(case)
    recipe = loaded.recipe
    options = RunOptions(
        loaded.reference,
        seed=case.seed,
        consistency=case.consistency,
        local_steps=case.local_steps,
    )
    settings = options.on(loaded, dataset).settings(loaded)
    run = RunState(settings, recipe.initial_weights(case.seed))
    local = local_steps(recipe, dataset, settings.step_settings)
    cluster = VirtualCluster(run, local, case.workers, case.churn)
    evaluate, half = Evaluator(recipe.model, dataset), settings.samples / 2
    figures: dict[str, list[float]] = {
        name: [] for name in ("seconds", "loss", "accuracy", "updates")
    }
    for seconds in cluster.turns():
        due = run.ledger.applied_samples >= (len(figures["loss"]) + 1) * half
        if due or run.ledger.finished:
            found: Evaluation = evaluate(run.store.evaluated_weights)
            row = seconds, found.loss, found.accuracy or 0.0, run.store.version
            for name, value in zip(figures, row, strict=True):
                figures[name].append(value)
    return figures


class VirtualCluster:
    """A server and ``workers`` in virtual time, whose leases are computed one after the other."""

    def __init__(self, run: RunState, local: LocalSteps, workers: int, churn: bool) -> None:
        self._run = run
        self._server = ParameterServer(run)
        self._local = local
        self._churn = churn
        self._now_s = 0.0
        self._events: list[tuple[float, int, int, Work]] = []
        self._order, self._identities = count(), count(1)
        self._requests: dict[int, tuple[int, int]] = {}  # by node: worker id, identity
        self._speeds = np.linspace(1 - SPREAD, 1 + SPREAD, workers) if workers > 1 else [1.0]
        for node in range(workers):
            self._join(node)
        for node in range(workers):
            self._pull(node)

    def turns(self) -> Iterator[float]:
        """Yield the virtual seconds after each push, until the run is finished."""
        while not self._run.ledger.finished:
            self._now_s, _, node, work = heapq.heappop(self._events)
            self._push(node, work)
            yield self._now_s
            if self._churn and node == 0:
                self._join(node)
                self._pull(node)

    def _join(self, node: int) -> None:
        settings, identity = self._run.settings, next(self._identities)
        join = Join(
            f"worker-{identity}", identity, settings.recipe_digest, settings.vector_size, True, 1
        )
        for command in self._handle(node, join):
            if isinstance(command, SendToPeer) and isinstance(command.message, Welcome):
                self._requests[node] = command.message.worker_id, identity

    def _pull(self, node: int) -> None:
        self._handle(node, Pull(*self._requests[node], self._next_request(node)))

    def _next_request(self, node: int) -> int:
        members = {each.worker_id: each for each in self._run.members.members}
        return members[self._requests[node][0]].received_id + 1

    def _push(self, node: int, work: Work) -> None:
        assert work.state is not None
        if work.worker_id != self._requests[node][0]:
            return  # of a worker that was replaced
        samples = work.epoch, work.start, work.stop
        lease = LeaseSteps(*samples, work.progress, work.pace, work.batch_size, work.parts)
        for _ in self._local.take(work.state, lease):
            pass
        result = self._local.loss_sum, self._local.correct, self._seconds_of(node, work)
        who = *self._requests[node], self._next_request(node)
        self._handle(node, Push(*who, work.lease_id, *result, self._local.state))

    def _seconds_of(self, node: int, work: Work) -> float:
        share = (work.stop - work.start) / self._run.settings.batch_size
        return float(STEP_S / self._speeds[node] * share)

    def _handle(self, node: int, message: Join | Pull | Push) -> list[Any]:
        commands = self._server.handle(b"%d" % node, message, self._now_s)
        for command in commands:
            if isinstance(command, SendToPeer) and isinstance(command.message, Work):
                receiver, work = int(command.node), command.message
                moment_s = self._now_s + EXCHANGE_S + self._seconds_of(receiver, work)
                heapq.heappush(self._events, (moment_s, next(self._order), receiver, work))
        return commands
