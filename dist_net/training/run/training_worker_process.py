"""The process of a training worker.

    python -m dist_net.training.run.training_worker_process [RECIPE] --connect ADDRESS ...

Prints ``LOADING WHAT`` on stdout every second at first, ``READY`` when it requests to join, and
``FAILED REASON`` when it ends with an error. Logs go to stderr.
"""

import argparse
import logging
import os
import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from dist_net.autodiff.kernels.thread_pool import MAX_THREADS
from dist_net.errors import InterruptedRunError
from dist_net.ground.command_line import add_options, count_from, seconds
from dist_net.nets.observer import recipe_at
from dist_net.nets.recipes.recipe import built_in_recipe, load_recipe
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.entry import StartReports, entry_point, stop_on_signals, use_threads
from dist_net.processes.equipment import (
    BITS,
    FAST,
    kernel_digest,
    own_equipment,
    require_bits,
    with_bits,
)
from dist_net.training.worker.cycle import REJOIN_TIMEOUT_S, Ended
from dist_net.training.worker.local_steps import LocalSteps, LocalStepsOf, local_steps, rehearse
from dist_net.training.worker.loop import WorkerLoop
from dist_net.training.worker.part_processes import PartProcesses
from dist_net.wire.messages import Join, StepSettings
from dist_net.wire.security import load_peer_keys
from dist_net.wire.transport import ServerAccess

logger = logging.getLogger("dist_net.training.run.training_worker_process")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "the server's recipe; required only if it is a Python file"
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=text)
    parser.add_argument("--connect", required=True, metavar="ADDRESS", help="the server's address")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="this worker's keys")
    parser.add_argument("--name", default=f"{socket.gethostname()}:{os.getpid()}", help="for logs")
    add_worker_arguments(parser)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)  # for its recipe
    parser.add_argument("--bits", choices=BITS, default=FAST, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--trust-recipe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # leave when it ends


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of each worker, which ``dist-net join`` has too."""
    wait, rejoin = "wait for the first reply of the server", "try to rejoin a silent server"
    add_options(
        parser,
        ("--threads", count_from(1, MAX_THREADS), "N", "threads per worker", 1),
        ("--timeout", seconds, "SECONDS", f"{wait} for this long", 10.0),
        ("--rejoin-timeout", seconds, "SECONDS", f"{rejoin} for this long", REJOIN_TIMEOUT_S),
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; raise InterruptedRunError if the run, or this worker, is ended before it is done."""
    with StartReports("the dataset") as reports:
        done = _train(arguments, reports)
    if not done.finished:
        # Not 0: a service manager must restart this worker, since the run may be resumed.
        raise InterruptedRunError(f"left the run before it was done: {done.reason}")
    logger.info("done reason=%s", done.reason)
    return 0


def _train(arguments: argparse.Namespace, reports: StartReports) -> Ended:
    require_bits(arguments.bits)
    use_threads(arguments.threads)
    logging.getLogger("dist_net").setLevel(logging.INFO)
    keys = load_peer_keys(arguments.keys) if arguments.keys else None
    if arguments.run_dir is not None:
        loaded = load_run_recipe(RunDirectory(arguments.run_dir), arguments.trust_recipe)
    elif arguments.recipe is not None:
        loaded = load_recipe(arguments.recipe)
    else:
        loaded = built_in_recipe(recipe_at(arguments.connect, keys, arguments.timeout))
    dataset, size = loaded.recipe.load_dataset(), loaded.recipe.layout.size
    rehearse(loaded.recipe, dataset)
    digest = with_bits(loaded.digest(dataset), arguments.bits)

    shapes = [shape for _, shape in loaded.recipe.layout.shapes]
    equipment = own_equipment(arguments.threads * arguments.parts, kernel_digest(shapes))

    def local_of(settings: StepSettings) -> LocalSteps:
        return local_steps(loaded.recipe, dataset, settings, arguments.threads)

    with ExitStack() as opened:
        steps_of: LocalStepsOf = local_of
        if arguments.parts > 1:
            reports.close()  # its thread must not be forked
            facts = arguments.parts, loaded.recipe.max_state_size, local_of
            steps_of = opened.enter_context(closing(PartProcesses(*facts))).steps_of
        own = arguments.name, 0, digest, size, True
        worker = opened.enter_context(
            WorkerLoop(
                steps_of,
                ServerAccess(arguments.connect, keys),
                Join(*own, equipment=equipment, parts=arguments.parts),
                join_timeout_s=arguments.timeout,
                rejoin_timeout_s=arguments.rejoin_timeout,
            )
        )
        stop_on_signals(worker.stop, arguments.parent)
        reports.ready()
        return worker.train()


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
