"""The process of a parameter server, for one run.

    python -m dist_net.training.run.parameter_server_process RUN_DIRECTORY LISTEN_ADDRESS...
        [--keys DIR] [--resume] [--threads N] [--parent PROCESS_ID] [--trust-recipe]

Prints ``LOADING WHAT`` on stdout every second at first, then ``READY ADDRESS...``, quoted for a
shell, when there is a first checkpoint and workers may connect, or ``FAILED REASON`` when it ends
for a reason of its own. Logs go to stderr. When ``--parent`` has ended, the run is suspended: see
``ServerLoop.suspend``.

It reads the run's options from the run directory, with facts about the dataset; it does not read
the dataset. ``--threads``: how many threads each worker of this host uses, for the journal.
"""

import argparse
import shlex
import socket
import sys
import time
from pathlib import Path

from dist_net.command_line import add_trust_argument
from dist_net.nets.offered_recipe import recipe_offer
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.entry import StartReports, entry_point, stop_on_signals
from dist_net.processes.kernels import require_bits
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.loop import ServerFiles, opened_server
from dist_net.training.server.ownership import NOTICED_WITHIN_S, RunOwnership
from dist_net.wire.security import load_server_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("listen", nargs="+")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int)
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the run is shut down, or the process that started this one has ended."""
    reports = StartReports("the recipe")
    directory = RunDirectory(arguments.run_directory)
    options = RunOptions.from_json(directory.options.read_text())
    require_bits(options.bits)
    loaded = load_run_recipe(directory, arguments.trust_recipe)
    settings = options.settings(loaded)
    manifest = directory.manifest.read_bytes() if directory.manifest.exists() else None
    keys = load_server_keys(arguments.keys) if arguments.keys else None
    reports.loads("the weights")
    ownership = RunOwnership(directory.owner, socket.gethostname())
    if ownership.was_elsewhere:
        time.sleep(NOTICED_WITHIN_S)
    with opened_server(
        settings,
        lambda: loaded.recipe.initial_weights(settings.seed),
        ServerFiles(
            directory.checkpoint,
            directory.journal,
            options.checkpoint_every_s,
            options.keep_checkpoints,
            options.sync,
        ),
        arguments.listen,
        keys,
        resumes=arguments.resume,
        threads=arguments.threads,
        offer=recipe_offer(
            loaded, settings.recipe_digest, settings.recipe_record["class_names"], manifest
        ),
        ownership=ownership,
    ) as (loop, addresses):
        stopped = f"the parameter server on {socket.gethostname()} was stopped: "
        stop_on_signals(
            lambda reason: loop.stop(stopped + reason), arguments.parent, orphaned=loop.suspend
        )
        loop.serve(ready=lambda: reports.ready(shlex.join(addresses)))
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
