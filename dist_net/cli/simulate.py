"""``dist-net simulate``: predict the throughput of a cluster before buying it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.command_line import Option, add_options, count_from, count_or_auto, number_above_zero
from dist_net.errors import CostsDamagedError, FileWriteError, SettingError
from dist_net.nets.recipes.recipe import load_recipe, recipe_names
from dist_net.printable import counted
from dist_net.processes.cores import available_cores
from dist_net.processes.terminal import plain_console
from dist_net.training.planner import capacity as planned
from dist_net.training.planner.capacity import (
    MAX_WORKERS,
    ClusterPlan,
    PredictedCapacity,
    saturation,
)
from dist_net.training.planner.costs import SHARED_MEMORY, ClusterCosts, Network, state_vectors
from dist_net.training.run.measuring import measure_step, measure_transport
from dist_net.training.run.plots import new_figure, plot_capacity
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency

TYPICAL_COSTS = Path(planned.__file__).with_name("typical_costs.json")
"""Medians of five measurements of Fashion-MNIST, on two cores of an Intel Xeon (virtual)."""

DEFAULT_RUN: dict[str, Any] = {"batch_size": 32, "minibatches": 10_000, "epochs": 1, "threads": 1}

NAMES = {
    "workers": "the workers' computing",
    "exchange": "the time that each exchange takes",
    "server": "the server",
    "network": "the server's network",
    "cores": "the host's CPU",
}

COUNT, WORKERS = count_from(1), [1, 2, 4, 8, 16]
OPTIONS: tuple[Option, ...] = (
    ("--network", str, "RATE:LATENCY", "such as 1gbit:0.1ms (default: shared-memory, one host)"),
    ("--local-steps", count_or_auto(1), "H", "as for train (default: auto)"),
    ("--cores", COUNT, "N", "per host (default: this host's)"),
    ("--workers-per-host", COUNT, "N", "with --network; they exchange together (default: 1)"),
    ("--threads", COUNT, "N", "per worker (default: 1)"),
    ("--step-ms", number_above_zero, "MS", "time of a minibatch on a worker"),
    ("--parameters", COUNT, "N", "number of float32 parameters"),
    ("--optimizer", str, "NAME", "the update rule (default: the recipe's, or adam)"),
    ("--batch-size", COUNT, "N", "samples of a minibatch (default: the recipe's, or 32)"),
    ("--minibatches", COUNT, "N", "of the whole run (default: the recipe's, or 10,000)"),
    ("--save-costs", Path, "FILE", "measure, and save the costs"),
    ("--plot", Path, "FILE", "plot against the number of workers: .png or .svg"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipes = ", ".join(recipe_names())
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help=f"time its steps: {recipes}, or a Python file"
    )
    source.add_argument("--costs", type=Path, metavar="FILE", help="load the costs of --save-costs")
    parser.add_argument(
        "--workers",
        type=COUNT,
        nargs="+",
        metavar="N",
        default=WORKERS,
        help="of the cluster (default: 1 to 16)",
    )
    parser.add_argument(
        "--consistency", choices=tuple(Consistency), help="as for train (default: rounds)"
    )
    add_options(parser, *OPTIONS)
    parser.add_argument("--measure", action="store_true", help="also time exchanges on this host")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    require_sense(arguments)
    figure = None if arguments.plot is None else new_figure(15, 4.2)
    plan = ClusterPlan(
        max(arguments.workers),
        read_costs(TYPICAL_COSTS),
        Network.parse(arguments.network or SHARED_MEMORY),
        arguments.cores or available_cores(),
        arguments.workers_per_host or 1,
        Consistency(arguments.consistency or Consistency.ROUNDS),
        arguments.local_steps,
    )
    costs = costs_given(arguments)  # not before the options are validated
    if arguments.save_costs is not None:
        write(lambda: arguments.save_costs.write_text(costs.to_json()))
    plan = replace(plan, costs=costs)
    predictions = [replace(plan, workers=n).predict() for n in sorted({*arguments.workers})]
    first = saturation(plan)
    title = (
        f"{costs.parameters:,} parameters, {costs.minibatches:,} minibatches of "
        f"{costs.batch_size:,} in {costs.step_ms:.4g} ms, {plan.network.text}, {plan.consistency}"
    )
    print(title, *table(predictions), verdict(predictions[-1], first), sep="\n")
    if figure is not None:
        plot_capacity(predictions, title, figure)
        write(lambda: figure.savefig(arguments.plot, dpi=120))
    if arguments.json:
        result = asdict(costs) | {
            "cores": plan.cores,
            "network": plan.network.text,
            "consistency": str(plan.consistency),
            "exchange_bytes": plan.exchange_bytes,
            "saturates": first and first.bottleneck,
            "saturates_at_workers": first and first.workers,
            "predictions": [
                each._asdict() | {"bottleneck": each.bottleneck} for each in predictions
            ],
        }
        print_json(result)
    return 0


def write(save: Callable[[], object]) -> None:
    try:
        save()
    except OSError as error:
        raise FileWriteError(f"cannot write the file: {error}") from error


def require_sense(arguments: argparse.Namespace) -> None:
    """Raise ``SettingError`` if options are missing."""
    by_hand = arguments.step_ms is not None and arguments.parameters is not None
    measures = arguments.measure or arguments.save_costs is not None
    if arguments.recipe is None and (measures or not (arguments.costs or by_hand)):
        raise SettingError(
            "no RECIPE to time: pass a RECIPE or, without --measure and --save-costs, "
            "saved --costs or both --step-ms and --parameters"
        )
    if arguments.plot is not None and arguments.plot.suffix not in (".png", ".svg"):
        raise SettingError(f"--plot={arguments.plot}: expected a .png or .svg file")


def costs_given(arguments: argparse.Namespace) -> ClusterCosts:
    """Return the measured, saved or typical costs, with the overrides of the command line."""
    if arguments.recipe is not None:
        costs = costs_of_recipe(arguments)
    elif arguments.costs is not None:
        costs = read_costs(arguments.costs)
    else:
        costs = replace(read_costs(TYPICAL_COSTS), **DEFAULT_RUN)
    names = "parameters", "batch_size", "minibatches", "step_ms", "threads"
    given = {name: getattr(arguments, name) for name in names}
    given["epochs"] = arguments.minibatches and 1
    if arguments.optimizer is not None:
        given["state_vectors"] = state_vectors(arguments.optimizer)
    return replace(costs, **{name: value for name, value in given.items() if value is not None})


def costs_of_recipe(arguments: argparse.Namespace) -> ClusterCosts:
    """Time the steps of a recipe and, with --measure, exchanges; return the costs."""
    loaded, console = load_recipe(arguments.recipe), plain_console()
    chosen = {"batch_size": arguments.batch_size, "optimizer": arguments.optimizer}
    options = RunOptions(loaded.reference, **chosen)
    _, dataset, _, settings = PreparedRun.read(loaded, options, console)
    threads = arguments.threads or 1
    costs = replace(
        read_costs(TYPICAL_COSTS),
        parameters=settings.vector_size,
        state_vectors=state_vectors(settings.optimizer),
        batch_size=settings.batch_size,
        minibatches=settings.minibatches,
        epochs=settings.epochs,
        threads=threads,
        step_ms=1e3 * measure_step(loaded, dataset, settings, threads),
    )
    if arguments.measure or arguments.save_costs is not None:
        console.print("measuring exchanges on this host, for about 20 s")
        shared_memory, tcp = (
            measure_transport(is_shared, costs.parameters, costs.state_vectors - 1)
            for is_shared in (True, False)
        )
        costs = replace(costs, shared_memory=shared_memory, tcp=tcp)
    return costs


def read_costs(path: Path) -> ClusterCosts:
    """Read saved costs; raise ``CostsDamagedError``."""
    try:
        with path.open(encoding="utf-8") as file:
            return ClusterCosts.from_json(file.read(100_000))  # a real file has 500 characters
    except (OSError, UnicodeDecodeError, CostsDamagedError) as error:
        raise CostsDamagedError(f"cannot read the costs in {path}: {error}") from error


def table(predictions: Sequence[PredictedCapacity]) -> list[str]:
    """Return the lines of a table, as wide as its numbers; of the loads, it has the highest."""
    names = ("workers", "samples/s", "local steps", "waiting", "staleness", "load", "bottleneck")
    rows = [names] + [
        (
            f"{each.workers:,}",
            f"{each.samples_per_s:,.0f}",
            f"{each.local_steps:,}",
            f"{each.waiting:.0%}",
            f"{each.staleness:,}",
            f"{each.busiest} {each.load[each.busiest]:,.0%}",
            each.bottleneck,
        )
        for each in predictions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def verdict(last: PredictedCapacity, first: PredictedCapacity | None) -> str:
    """Return a sentence: the bottleneck, and at how many workers a resource saturates."""
    now = f"With {counted(last.workers, 'worker')}, the bottleneck is {NAMES[last.bottleneck]}"
    if first is None:
        return f"{now}; nothing saturates with up to {MAX_WORKERS:,} workers."
    if first.bottleneck == last.bottleneck:
        return f"{now}, which saturates at {counted(first.workers, 'worker')}."
    return f"{now}; {NAMES[first.bottleneck]} saturates at {counted(first.workers, 'worker')}."
