"""``dist-net simulate``: predict the throughput of a cluster before buying it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_net.cli.parser import count_from, number_above_zero
from dist_net.errors import CostsDamagedError, FileWriteError, SettingError
from dist_net.nets.recipes.recipe import load_recipe, recipe_names
from dist_net.processes.cores import available_cores
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.training.planner import costs as costs_of_clusters
from dist_net.training.planner.capacity import ClusterPlan, PlannedCluster, PredictedCapacity
from dist_net.training.planner.costs import SHARED_MEMORY, ClusterCosts, Network
from dist_net.training.run.measuring import measure_cluster, measure_step
from dist_net.training.run.plots import new_figure, plot_capacity
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.run_state import STALENESS_WITHOUT_COST

TYPICAL_COSTS = Path(costs_of_clusters.__file__).with_name("typical_costs.json")
"""Measured by this command for Fashion-MNIST, on two cores of an Intel Xeon (virtual)."""

DEFAULT_WORKERS = [1, 2, 4, 8, 16]
DEFAULT_BATCH_SIZE = 32
MAX_CHARACTERS = 100_000  # of a costs file; a real one has about 2,000
IMAGES = (".png", ".svg")

WORDS = {
    "network": "the server's network",
    "update": "the server's update of the weights",
    "messages": "the server's work on messages",
    "cores": "the host's cores",
    "workers": "the workers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help=f"time the step of this recipe: {', '.join(recipe_names())}, or a Python file",
    )
    parser.add_argument(
        "--workers",
        type=count_from(1),
        nargs="+",
        default=DEFAULT_WORKERS,
        metavar="N",
        help=f"one or more numbers (default: {' '.join(map(str, DEFAULT_WORKERS))})",
    )
    parser.add_argument(
        "--network",
        type=network,
        default=Network(),
        metavar="RATE:LATENCY",
        help="the server's network, such as 1gbit:0.1ms; shared-memory: one host (default)",
    )
    parser.add_argument(
        "--consistency", default="auto", metavar="MODE", help="as for train (default: auto)"
    )
    _add_cost_arguments(parser)
    parser.add_argument(
        "--seed", type=count_from(0), default=0, metavar="N", help="of the model (default: 0)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot against the number of workers: .png or .svg"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_cost_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the costs of a step and of a push, and for the hosts."""
    by_hand = parser.add_argument_group("overrides of measured values")
    by_hand.add_argument(
        "--step-ms", type=number_above_zero, metavar="MS", help="time of a minibatch on a worker"
    )
    by_hand.add_argument(
        "--parameters", type=count_from(1), metavar="N", help="number of float32 parameters"
    )
    by_hand.add_argument(
        "--batch-size",
        type=count_from(1),
        metavar="N",
        help=f"samples per minibatch (default: the recipe's, or {DEFAULT_BATCH_SIZE})",
    )
    hosts = parser.add_argument_group("hosts")
    hosts.add_argument("--threads", type=count_from(1), metavar="N", help="per worker (default: 1)")
    hosts.add_argument(
        "--cores", type=count_from(1), metavar="N", help="per host (default: this host's)"
    )
    hosts.add_argument(
        "--workers-per-host",
        type=count_from(1),
        default=1,
        metavar="N",
        help="with --network RATE:LATENCY (default: 1)",
    )
    measured = parser.add_argument_group("costs")
    measured.add_argument(
        "--measure", action="store_true", help="also measure pushes and updates on this host"
    )
    measured.add_argument(
        "--save-costs", type=Path, metavar="FILE", help="save the results of --measure"
    )
    measured.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="load costs saved by --save-costs, on this host or another",
    )


def network(text: str) -> Network:
    try:
        return Network.parse(text)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(arguments: argparse.Namespace) -> int:
    """Predict the capacity, print and plot it, and return the exit code."""
    require_sense(arguments)
    console = plain_console()
    figure = None if arguments.plot is None else new_figure(15, 4.2)
    costs = costs_given(arguments, console)
    plans = [plan_of(arguments, costs, workers) for workers in sorted({*arguments.workers})]
    console.print(title_of(plans[-1]))
    predictions = [PlannedCluster(plan, arguments.seed).predict() for plan in plans]
    show(predictions, console)
    console.print(verdict(predictions, plans[-1]))
    result = as_json(predictions, plans[-1])
    if figure is not None:
        plot_capacity(result["predictions"], title_of(plans[-1]), figure)
        try:
            figure.savefig(arguments.plot, dpi=120)
        except OSError as error:
            raise FileWriteError(f"cannot write the plot: {error}") from error
    if arguments.json:
        print(json.dumps(result))
    return 0


def require_sense(arguments: argparse.Namespace) -> None:
    """Raise ``SettingError`` if options contradict each other or are missing."""
    if arguments.costs is not None and (arguments.measure or arguments.recipe is not None):
        raise SettingError(
            "--costs cannot be combined with a RECIPE or --measure; pass either saved costs or a "
            "RECIPE to measure"
        )
    if arguments.save_costs is not None and not arguments.measure:
        raise SettingError("--save-costs without --measure; pass both")
    if arguments.measure and arguments.recipe is None:
        raise SettingError("--measure without a RECIPE; expected a RECIPE to time")
    by_hand = arguments.step_ms is not None and arguments.parameters is not None
    if not (by_hand or arguments.recipe is not None or arguments.costs is not None):
        raise SettingError(
            "no training step to predict: expected a RECIPE, or --step-ms and --parameters"
        )
    if arguments.plot is not None and arguments.plot.suffix not in IMAGES:
        raise SettingError(f"--plot={arguments.plot}: expected a {' or '.join(IMAGES)} file")


def costs_given(arguments: argparse.Namespace, console: Console) -> ClusterCosts:
    """Return the measured, saved or typical costs, with the overrides of the command line."""
    if arguments.measure:
        costs = measured_costs(arguments, console)
    elif arguments.costs is not None:
        costs = read_costs(arguments.costs)
    else:
        costs = replace(read_costs(TYPICAL_COSTS), batch_size=DEFAULT_BATCH_SIZE, threads=1)
        if arguments.recipe is not None:
            costs = with_step_of(arguments, costs, console)
    given = {name: getattr(arguments, name) for name in ("parameters", "batch_size", "step_ms")}
    return replace(costs, **{name: value for name, value in given.items() if value is not None})


def with_step_of(
    arguments: argparse.Namespace, costs: ClusterCosts, console: Console
) -> ClusterCosts:
    """Return the costs with the recipe's step, timed on this host."""
    loaded = load_recipe(arguments.recipe)
    with FetchProgress(console) as progress:
        dataset = loaded.recipe.load_dataset(progress)
    batch_size, threads = arguments.batch_size or loaded.recipe.batch_size, arguments.threads or 1
    step_s = measure_step(loaded, dataset, batch_size, threads)
    size = loaded.recipe.model.layout.size
    return replace(
        costs, parameters=size, batch_size=batch_size, threads=threads, step_ms=1e3 * step_s
    )


def measured_costs(arguments: argparse.Namespace, console: Console) -> ClusterCosts:
    """Measure all costs on this host, print them and save them if requested."""
    loaded = load_recipe(arguments.recipe)
    with FetchProgress(console) as progress:
        dataset = loaded.recipe.load_dataset(progress)
    costs = measure_cluster(
        loaded,
        dataset,
        arguments.batch_size,
        arguments.threads or 1,
        lambda line: console.print(f"measuring, {line}"),
    )
    show_costs(costs, console)
    if arguments.save_costs is not None:
        try:
            arguments.save_costs.write_text(costs.to_json())
        except OSError as error:
            raise FileWriteError(f"cannot save the costs: {error}") from error
    return costs


def read_costs(path: Path) -> ClusterCosts:
    """Read saved costs; raise ``CostsDamagedError``."""
    try:
        with path.open(encoding="utf-8") as file:
            return ClusterCosts.from_json(file.read(MAX_CHARACTERS))
    except (OSError, UnicodeDecodeError) as error:
        raise CostsDamagedError(f"cannot read the costs: {error}") from error
    except CostsDamagedError as error:
        raise CostsDamagedError(f"{path}: {error}") from error


def plan_of(arguments: argparse.Namespace, costs: ClusterCosts, workers: int) -> ClusterPlan:
    shares_memory = arguments.network.bytes_per_s is None
    return ClusterPlan(
        workers,
        1e-3 * costs.step_ms,
        costs.batch_size,
        costs.parameters,
        arguments.network,
        costs.shared_memory if shares_memory else costs.tcp,
        arguments.threads or costs.threads,
        arguments.cores or available_cores(),
        arguments.workers_per_host,
        Consistency.parse(arguments.consistency, workers),
    )


def show_costs(costs: ClusterCosts, console: Console) -> None:
    """Print the cost of a push of one gradient and its reply per thread, in microseconds."""
    table = Table("µs for a push", SHARED_MEMORY, "tcp, encrypted")
    exchange = 1, costs.parameters
    of_each = [
        {
            "server": 1e6 * of.server.exchange_s(*exchange),
            "server, vectors only": 1e6 * of.server.vectors_s(*exchange),
            "server's transport": 1e6 * of.server_transport.exchange_s(*exchange),
            "worker": 1e6 * of.worker.exchange_s(*exchange),
            "worker's transport": 1e6 * of.worker_transport.exchange_s(*exchange),
            "latency, each way": of.latency_us,
        }
        for of in (costs.shared_memory, costs.tcp)
    ]
    for name in of_each[0]:
        table.add_row(name, *(f"{each[name]:,.0f}" for each in of_each))
    console.print(table)


def show(predictions: Sequence[PredictedCapacity], console: Console) -> None:
    table = Table("workers", "samples/s", "staleness", "at most", "idle", "busiest", "bound by")
    for each in predictions:
        busiest = max(each.busy, key=lambda part: each.busy[part])
        table.add_row(
            f"{each.workers:,}",
            f"{each.samples_per_s:,.0f}",
            f"{each.staleness_mean:,.1f}",
            f"{each.staleness_max:,}",
            f"{each.idle:.0%}",
            f"{busiest} {each.busy[busiest]:.0%}",
            each.bound_by,
        )
    console.print(table)


def verdict(predictions: Sequence[PredictedCapacity], plan: ClusterPlan) -> str:
    """Return the bottleneck, the first resource to saturate, and a warning about staleness."""
    part, workers = plan.first_bound()
    last = predictions[-1]
    many = "1 worker" if last.workers == 1 else f"{last.workers:,} workers"
    first = f"{max(1.0, workers):.1f}" if workers < 10 else f"{workers:,.0f}"
    if last.bound_by == "workers":
        said = f"one server is enough for {many}"
    else:
        said = f"with {many}, the bottleneck is {WORDS[last.bound_by]}"
    said += f"; the first to saturate, at about {first} workers, is {WORDS[part]}"
    if last.staleness_mean > STALENESS_WITHOUT_COST:
        said += (
            f"\ngradients would be {last.staleness_mean:,.0f} updates old on average, which costs "
            f"accuracy: see --consistency of dist-net train"
        )
    return said


def as_json(predictions: Sequence[PredictedCapacity], plan: ClusterPlan) -> dict[str, Any]:
    part, workers = plan.first_bound()
    return {
        "parameters": plan.parameters,
        "batch_size": plan.batch_size,
        "step_ms": 1e3 * plan.step_s,
        "threads": plan.threads,
        "cores": plan.cores,
        "network": str(plan.network),
        "consistency": str(plan.consistency),
        "bytes_received_per_sample": plan.push_bytes / plan.samples_in_push,
        "bytes_sent_per_sample": plan.answer_bytes / plan.samples_in_push,
        "bound_first": part,
        "bound_first_at_workers": workers,
        "predictions": [each._asdict() for each in predictions],
    }


def title_of(plan: ClusterPlan) -> str:
    return (
        f"{plan.parameters:,} parameters, minibatches of {plan.batch_size} in "
        f"{1e3 * plan.step_s:.4g} ms, {plan.network}"
    )
