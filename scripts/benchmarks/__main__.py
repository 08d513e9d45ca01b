"""``scripts/bench NAME``: measures this project, and its peers in the same run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    capacity,
    convergence,
    darknet53,
    join,
    main_job,
    nets,
    on_ray,
    photos,
    photos_honesty,
    photos_tuning,
    recovery,
    serving,
    slow_networks,
    small_nets,
    takeover,
    training,
    training_duress,
)
from dist_net.cli.parser import Parser
from dist_net.errors import DistNetError
from dist_net.processes.entry import use_threads
from dist_net.processes.terminal import plain_console

BENCHES: dict[str, Callable[..., dict[str, Any]]] = {
    "training": training.measure,
    "darknet53": darknet53.measure,
    "nets": nets.measure,
    "small-nets": small_nets.measure,
    "photos": photos.measure,
    "photos-honesty": photos_honesty.measure,
    "photos-tuning": photos_tuning.measure,
    "serving": serving.measure,
    "recovery": recovery.measure,
    "join": join.measure,
    "slow-networks": slow_networks.measure,
    "takeover": takeover.measure,
    "training-duress": training_duress.measure,
    "ray": on_ray.measure,
    "capacity": capacity.measure,
}


SCALED = ("photos", "photos-honesty", "photos-tuning", "serving", "training-duress")
WITH_ARGUMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "main-job": main_job.measure,
    "convergence": convergence.measure,
}


def main() -> int:
    """Measures, shows tables or one JSON object, and gives the exit code."""
    parser = Parser(prog="scripts/bench", description="Measures speed, as medians and ratios.")
    names = [*BENCHES, *WITH_ARGUMENTS]
    parser.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    parser.add_argument("--peers", action="store_true", help="measure every installed peer too")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help=f"of {', '.join(SCALED)}: how much is measured (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    main_job.add_arguments(parser)
    convergence.add_arguments(parser)
    arguments = parser.parse_args(sys.argv[1:])
    options = {"scale": arguments.scale} if arguments.name in SCALED else {}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if arguments.name in WITH_ARGUMENTS:
            measured = WITH_ARGUMENTS[arguments.name](arguments, say)
        else:
            measured = BENCHES[arguments.name](arguments.peers, say, **options)
    except DistNetError as error:
        print(f"scripts/bench {arguments.name}: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(measured))
    else:
        show(measured, plain_console(stderr=False))
    return 0


def show(measured: dict[str, Any], console: Console) -> None:
    """Prints each list as a table, and all else line by line."""
    for title, content in measured.items():
        match content:
            case [*rows]:
                if rows:
                    console.print(table_of(title, rows))
            case {**named}:
                for name, value in named.items():
                    console.print(f"{name}: {value}")
            case value:
                console.print(f"{title}: {value}")


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    """A table with a column for each key of the first row."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(
            *(f"{value:,}" if isinstance(value, int | float) else value for value in row.values())
        )
    return table


if __name__ == "__main__":
    use_threads(1)
    sys.exit(main())
