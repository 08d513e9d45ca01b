"""``dist-net simulate``: predict how many workers pay before buying them."""

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.errors import SettingError
from dist_net.ground.command_line import Option, add_options, count_from, number_above_zero
from dist_net.ground.printable import counted
from dist_net.nets.recipes.recipe import load_recipe, recipe_names
from dist_net.processes.entry import use_threads
from dist_net.processes.equipment import available_cores
from dist_net.processes.terminal import plain_console
from dist_net.training.run.capacity import (
    MAX_WORKERS,
    ClusterPlan,
    Network,
    PredictedCapacity,
    settings_of,
)
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.local_steps import local_steps
from dist_net.wire.lease_steps import LeaseSteps

REASONS = {
    "server": "workers wait for the server",
    "network": "workers wait for the server's network",
    "cores": "workers wait for the host's cores",
    "minibatch": "a minibatch has too few samples for more",
    None: "nothing is predicted",
}

STEP_SECONDS, MIN_STEPS = 1.0, 5

COUNT, WORKERS = count_from(1), [1, 2, 4, 8, 16]
OPTIONS: tuple[Option, ...] = (
    ("--step-ms", number_above_zero, "MS", "without RECIPE: time of a minibatch on a worker"),
    ("--parameters", COUNT, "N", "without RECIPE: number of float32 parameters, for Adam"),
    ("--minibatches", COUNT, "N", "without RECIPE: of the whole run (default: 10,000)"),
    ("--batch-size", COUNT, "N", "samples of a minibatch (default: the recipe's, or 32)"),
    ("--network", str, "RATE:LATENCY", "such as 1gbit:0.1ms (default: one host)"),
    ("--cores", COUNT, "N", "of the one host (default: this host's)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipes = ", ".join(recipe_names())
    text = f"time its steps on this host: {recipes}, or a Python file"
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=text)
    text = "of the cluster (default: 1 to 16)"
    parser.add_argument("--workers", type=COUNT, nargs="+", metavar="N", default=WORKERS, help=text)
    add_options(parser, *OPTIONS)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    require_sense(arguments)
    described = run_by_hand if arguments.recipe is None else measured_run
    cores = arguments.cores or available_cores()
    network = None if arguments.network is None else Network.parse(arguments.network)
    plan = ClusterPlan(*described(arguments), cores, network)
    predictions = [plan.predict(workers) for workers in sorted({1, *arguments.workers})]
    most = plan.most_that_pay()
    times_one = most.samples_per_s / predictions[0].samples_per_s
    limit = plan.predict(most.workers + 1).limit if most.workers < MAX_WORKERS else None
    settings, step_ms = plan.settings, 1e3 * plan.step_s
    print(
        f"{settings.vector_size:,} parameters, {settings.minibatches:,} minibatches of "
        f"{settings.batch_size:,} in {step_ms:.4g} ms",
        *table(predictions),
        f"{counted(most.workers, 'worker')} can pay: {most.samples_per_s:,.0f} samples/s, "
        f"{times_one:.1f} times as many as one. Beyond, {REASONS[limit]}.",
        sep="\n",
    )
    if arguments.json:
        result = {
            "parameters": settings.vector_size,
            "batch_size": settings.batch_size,
            "minibatches": settings.minibatches,
            "step_ms": step_ms,
            "exchange_s": plan.exchange_s,
            "network": network and network._asdict(),
            "cores": cores,
            "workers_that_pay": most.workers,
            "limit": limit,
            "predictions": [each._asdict() for each in predictions],
        }
        print_json(result)
    return 0


def require_sense(arguments: argparse.Namespace) -> None:
    """Raise ``SettingError`` if options are missing, contradict each other, or are too large."""
    by_hand = arguments.step_ms, arguments.parameters
    has_recipe = arguments.recipe is not None
    if any((*by_hand, arguments.minibatches)) if has_recipe else not all(by_hand):
        raise SettingError(
            "expected a RECIPE to time, or instead both --step-ms and --parameters, perhaps "
            "with --minibatches"
        )
    if max(arguments.workers) > MAX_WORKERS:
        raise SettingError(f"workers={max(arguments.workers)}: expected at most {MAX_WORKERS:,}")


def run_by_hand(arguments: argparse.Namespace) -> tuple[RunSettings, float]:
    """Return a run as the options describe it, and the seconds of a step."""
    minibatches, batch_size = arguments.minibatches or 10_000, arguments.batch_size or 32
    settings = settings_of(arguments.parameters, minibatches, batch_size)
    return settings, 1e-3 * arguments.step_ms


def measured_run(arguments: argparse.Namespace) -> tuple[RunSettings, float]:
    """Return the recipe's run, and the median seconds of a step on one core of this host."""
    loaded, console = load_recipe(arguments.recipe), plain_console()
    options = RunOptions(loaded.reference, batch_size=arguments.batch_size)
    _, dataset, _, settings = PreparedRun.read(loaded, options, console)
    use_threads(1)
    local = local_steps(loaded.recipe, dataset, settings.step_settings)
    state = local.rule.initial(loaded.recipe.initial_weights(settings.seed))
    whole_minibatches = settings.samples // settings.batch_size * settings.batch_size
    lease = LeaseSteps(0, 0, whole_minibatches, 0, 0, settings.batch_size)
    began_s: list[float] = []
    while True:
        for _ in local.take(state, lease):
            began_s.append(time.perf_counter())
            # The first step compiles.
            if len(began_s) > MIN_STEPS and began_s[-1] > began_s[1] + STEP_SECONDS:
                return settings, median(after - before for before, after in pairwise(began_s[1:]))


def table(predictions: Sequence[PredictedCapacity]) -> list[str]:
    """Return the lines of a table, as wide as its numbers; the first prediction is of 1 worker."""
    one_per_s = predictions[0].samples_per_s
    rows = [("workers", "samples/s", "times one", "local steps", "waiting", "limit")] + [
        (
            f"{each.workers:,}",
            f"{each.samples_per_s:,.0f}",
            f"{each.samples_per_s / one_per_s:.1f}",
            f"{each.local_steps:,}",
            f"{each.waiting:.0%}",
            each.limit,
        )
        for each in predictions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
