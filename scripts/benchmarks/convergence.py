"""``scripts/bench convergence``: a cluster's accuracy and loss, compared with one process.

The shipped decisions of the server and the shipped local steps, with real gradients in virtual
time, one after the other in one thread. The cases are drawn: lengths, batch sizes, optimizers and
nets between the points that anybody tuned for. One process computes the same as a cluster of one
worker, bit for bit, so that the run with one worker is the reference: of the same case and seed.
"""

from __future__ import annotations

import heapq
import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, product
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.data import Dataset, dataset_named
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import (
    GRU,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    Rescale,
    Sequential,
    cross_entropy_of_logits,
    mean_squared_error,
    relu,
)
from dist_net.optim import ConstantRate, Cosine, optimizer_named, schedule_named
from dist_net.training.run.evaluation import Evaluation, Evaluator
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.protocol import ParameterServer, SendToPeer
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.training.worker.local_steps import LocalSteps, local_steps
from dist_net.wire.messages import Join, Pull, Push, Welcome, Work

STEP_S, SPREAD = 0.001, 0.1
"""A step of the average worker; the speeds of the workers are spread evenly by ± 10 %."""

EVALUATIONS = 24
"""In a run. A case is judged by the mean over its second half, whenever its rounds end."""

RATES = {
    "sgd": 0.1,
    "momentum": 0.02,
    "nesterov": 0.02,
    "adam": 0.001,
    "adamw": 0.001,
    "adagrad": 0.02,
    "rmsprop": 0.001,
}
"""The highest rate that is drawn for minibatches of 32 samples or more; the lowest is a third."""


class Task(NamedTuple):
    """A net for Fashion-MNIST; pixels are averaged over squares of ``pixels`` pixels a side."""

    network: Layer
    pixels: int = 4
    regression: bool = False


DENSE = Flatten(), Dense(32, relu)
TASKS = {
    "classes": Task(Sequential(Rescale(), *DENSE, Dense(10))),
    "regression": Task(Sequential(Rescale(), *DENSE, Dense(21)), regression=True),
    "batch-norm": Task(
        Sequential(Rescale(), Flatten(), Dense(32), BatchNorm(activation=relu), Dense(10))
    ),
    "recurrent": Task(Sequential(Rescale(), GRU(16), Dense(10)), pixels=7),
    "convolution": Task(
        Sequential(Rescale(), Conv2D(8, 3, activation=relu), GlobalAveragePool(), Dense(10))
    ),
    "large": Task(Sequential(Rescale(), *DENSE, Dense(10)), pixels=1),
}
DRAWN_TASKS = [*TASKS][:-1]


@dataclass(frozen=True)
class Case:
    """A recipe, the length of its run, and the numbers of workers to compare with one process."""

    task: str
    optimizer: str
    learning_rate: float
    batch_size: int
    minibatches: int
    workers: tuple[int, ...] = (4, 8, 16)
    cosine: bool = False
    samples: int = 60_000


FIXED = {
    "momentum": Case("large", "momentum", 0.02, 32, 3125, samples=20_000),
    "sgd": Case("large", "sgd", 0.1, 32, 3125, samples=20_000),
    "adam": Case("large", "adam", 0.001, 32, 3125, samples=20_000),
    "batch-norm": Case("batch-norm", "adam", 0.001, 32, 900, (2, 4, 16), samples=1440),
    "small-batch": Case("classes", "adam", 0.001, 4, 3000, (4, 16), samples=6000),
    "regression": Case("regression", "momentum", 0.01, 32, 3125, (4, 16), samples=20_000),
    "adagrad": Case("large", "adagrad", 0.02, 32, 3125, (4, 16), samples=20_000),
    "long": Case("large", "sgd", 0.1, 32, 18_750, (2, 4, 8)),
    "long-adam": Case("large", "adam", 0.001, 32, 18_750, (2, 4, 8)),
    "long-adagrad": Case("large", "adagrad", 0.02, 32, 18_750, (2, 4, 8)),
}


def drawn(number: int, seed: int) -> dict[str, Case]:
    """Return ``number`` cases: minibatches and batch sizes are drawn on logarithmic scales."""
    random = np.random.default_rng(seed)
    cases = {}
    for place in range(number):
        task = DRAWN_TASKS[place % len(DRAWN_TASKS)]
        optimizer = str(random.choice([*RATES]))
        batch_size = max(round(2 ** random.uniform(0, 8)), 2 if task == "batch-norm" else 1)
        rate = RATES[optimizer] * 3 ** -random.uniform() * min(1.0, math.sqrt(batch_size / 32))
        minibatches = round(100 * 200 ** random.uniform())
        workers = int(random.integers(2, 9)), int(random.choice([16, 32]))
        facts = optimizer, float(f"{rate:.2g}"), batch_size, minibatches, workers
        cases[f"{place + 1}"] = Case(task, *facts, bool(random.uniform() < 0.25))
    return cases


def add_arguments(parser: ArgumentParser) -> None:
    """Declare which runs are made."""
    of_runs = parser.add_argument_group("of convergence")
    of_runs.add_argument("--cases", nargs="+", default=[], choices=FIXED, help="instead of drawn")
    of_runs.add_argument("--draw", type=int, default=60, metavar="N", help="draw N cases")
    of_runs.add_argument("--drawn-by", type=int, default=35, metavar="SEED")
    of_runs.add_argument("--consistency", nargs="+", default=["rounds"], metavar="MODE[:H]")
    of_runs.add_argument("--exchange-steps", type=float, default=0.5, metavar="STEPS")
    of_runs.add_argument("--seeds", type=int, default=3, metavar="N")
    of_runs.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="add each run to this file, and make none that is there already",
    )


def measure(arguments: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``: each case relative to one process, as medians over the seeds."""
    done = _runs_in(arguments.runs)

    def figures_of(name: str, case: Case, *how: Any) -> dict[str, float]:
        key = json.dumps([name, str(case), *how])
        if key not in done:
            done[key] = run_of(case, *how)
            if arguments.runs is not None:
                with arguments.runs.open("a") as file:
                    file.write(json.dumps([key, done[key]]) + "\n")
        return done[key]

    cases = {name: FIXED[name] for name in arguments.cases}
    cases = cases or drawn(arguments.draw, arguments.drawn_by)
    results = []
    for (name, case), mode in product(cases.items(), arguments.consistency):
        for workers in case.workers:
            compared = []
            for seed in range(arguments.seeds):
                short = f"rounds:{max(1, case.minibatches // 100)}"
                alone = figures_of(name, case, 1, seed, short, 0.5)
                own = figures_of(name, case, workers, seed, mode, arguments.exchange_steps)
                points = 100 * (own["accuracy"] - alone["accuracy"])
                compared.append((own["loss"] / alone["loss"], points, own["updates"]))
            loss_ratio, points, updates = map(median, zip(*compared, strict=True))
            row = {"case": name, "task": case.task, "optimizer": case.optimizer, "mode": mode}
            row |= {"batch_size": case.batch_size, "minibatches": case.minibatches}
            row |= {"workers": workers, "loss_ratio": round(loss_ratio, 3)}
            row |= {"points": round(points, 2), "updates": updates}
            say(" ".join(map(str, row.values())))
            results.append(row)
    return {"results": results}


def _runs_in(path: Path | None) -> dict[str, dict[str, float]]:
    if path is None or not path.exists():
        return {}
    return dict(json.loads(line) for line in path.read_text().splitlines())


@cache
def _data(pixels: int, regression: bool) -> Dataset:
    """Return Fashion-MNIST, or the regression of an image's right part on its left part."""
    whole = dataset_named("fashion-mnist")
    parts: list[NDArray[Any]] = []
    for images, labels in (
        (np.asarray(whole.train_inputs), np.asarray(whole.train_targets)),
        (np.asarray(whole.test_inputs)[:4000], np.asarray(whole.test_targets)[:4000]),
    ):
        squares = images.reshape(-1, 28 // pixels, pixels, 28 // pixels, pixels)
        inputs = squares.mean((2, 4)).astype(np.uint8)
        left, right = np.split(inputs, [4], axis=2)
        targets = right.reshape(len(right), -1).astype(np.float32) / 255
        parts += [left, targets] if regression else [inputs, labels]
    inputs, targets, tests, labels = (np.ascontiguousarray(each) for each in parts)
    names = () if regression else whole.class_names
    return Dataset("fashion-mnist", inputs, targets, tests, labels, names)


def prepared(case: Case) -> tuple[Recipe, Dataset]:
    """Return the recipe and the samples of a case."""
    task = TASKS[case.task]
    data = _data(task.pixels, task.regression)
    samples = min(case.samples, case.batch_size * case.minibatches)
    inputs, targets, tests = (
        np.asarray(each) for each in (data.train_inputs, data.train_targets, data.test_inputs)
    )
    inputs, targets = inputs[:samples], targets[:samples]
    if case.task == "convolution":
        inputs, tests = inputs[..., None], tests[..., None]
    dataset = replace(data, train_inputs=inputs, train_targets=targets, test_inputs=tests)
    recipe = Recipe(
        network=task.network,
        dataset=lambda: dataset,
        input_shape=inputs.shape[1:],
        loss=mean_squared_error if task.regression else cross_entropy_of_logits,
        optimizer=case.optimizer,
        learning_rate=case.learning_rate,
        schedule=Cosine() if case.cosine else ConstantRate(),
        batch_size=case.batch_size,
        epochs=max(1, round(case.batch_size * case.minibatches / samples)),
    )
    return recipe, dataset


def run_of(
    case: Case, workers: int, seed: int, mode: str, exchange_steps: float
) -> dict[str, float]:
    """Train in virtual time; return the means over the second half of the evaluations."""
    recipe, dataset = prepared(case)
    consistency, _, steps = mode.partition(":")
    settings = RunSettings(
        "drawn",
        "",
        recipe.layout.shapes,
        len(dataset.train_inputs),
        recipe.epochs,
        recipe.batch_size,
        seed,
        optimizer_named(recipe.optimizer),
        recipe.learning_rate,
        schedule_named(recipe.schedule),
        recipe.layout.momenta,
        has_classes=bool(dataset.class_names),
        consistency=Consistency.parse(consistency),
        local_steps=int(steps) if steps else None,
    )
    run = RunState(settings, recipe.initial_weights(seed))
    local = local_steps(recipe, dataset, settings.step_settings)
    cluster = VirtualCluster(run, local, workers, exchange_steps * STEP_S)
    evaluate = Evaluator(recipe.model, dataset)
    found: dict[float, Evaluation] = {}  # by the part of the run that is done
    due = 0.0
    for _ in cluster.turns():
        done = run.ledger.applied_samples / settings.samples_total
        if done >= due or run.ledger.finished:
            found[done], due = evaluate(run.store.evaluated_weights), done + 1 / EVALUATIONS
    second_half = np.linspace(0.5, 1, EVALUATIONS)
    loss, accuracy = (
        fmean(np.interp(second_half, [*found], values))
        for values in (
            [each.loss for each in found.values()],
            [each.accuracy or 0.0 for each in found.values()],
        )
    )
    return {"loss": loss, "accuracy": accuracy, "updates": run.store.version}


class VirtualCluster:
    """A server and ``workers`` in virtual time, whose leases are computed one after the other."""

    def __init__(
        self, run: RunState, local: LocalSteps, workers: int, exchange_s: float = STEP_S / 2
    ) -> None:
        self._run = run
        self._server = ParameterServer(run)
        self._local = local
        self._exchange_s = exchange_s
        self._now_s = 0.0
        self._events: list[tuple[float, int, int, Work]] = []
        self._order = count()
        self._requests: dict[int, tuple[int, int]] = {}  # by node: worker id, identity
        self._speeds = np.linspace(1 - SPREAD, 1 + SPREAD, workers) if workers > 1 else [1.0]
        for node in range(workers):
            self._join(node)
        for node in range(workers):
            self._handle(node, Pull(*self._requests[node], self._next_request(node)))

    def turns(self) -> Iterator[float]:
        """Yield the virtual seconds after each push, until the run is finished."""
        while not self._run.ledger.finished:
            self._now_s, _, node, work = heapq.heappop(self._events)
            self._push(node, work)
            yield self._now_s

    def _join(self, node: int) -> None:
        settings, name = self._run.settings, f"worker-{node}"
        join = Join(name, node, settings.recipe_digest, settings.vector_size, True, 1)
        for command in self._handle(node, join):
            if isinstance(command, SendToPeer) and isinstance(command.message, Welcome):
                self._requests[node] = command.message.worker_id, node

    def _next_request(self, node: int) -> int:
        members = {each.worker_id: each for each in self._run.members.members}
        return members[self._requests[node][0]].received_id + 1

    def _push(self, node: int, work: Work) -> None:
        assert work.state is not None
        for _ in self._local.take(work.state, work.steps):
            pass
        result = self._local.loss_sum, self._local.correct, self._seconds_of(node, work)
        who = *self._requests[node], self._next_request(node)
        self._handle(node, Push(*who, work.lease_id, *result, self._local.state))

    def _seconds_of(self, node: int, work: Work) -> float:
        share = work.steps.samples / self._run.settings.batch_size
        return float(STEP_S / self._speeds[node] * share)

    def _handle(self, node: int, message: Join | Pull | Push) -> list[Any]:
        commands = self._server.handle(b"%d" % node, message, self._now_s)
        for command in commands:
            if isinstance(command, SendToPeer) and isinstance(command.message, Work):
                receiver, work = int(command.node), command.message
                moment_s = self._now_s + self._exchange_s + self._seconds_of(receiver, work)
                heapq.heappush(self._events, (moment_s, next(self._order), receiver, work))
        return commands
