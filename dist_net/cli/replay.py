"""``dist-net replay RUN``: recompute a run from its journal in one process."""

import argparse
import os
import sys
from pathlib import Path

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.errors import JournalMismatchError, ReplayError
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.ground.command_line import add_trust_argument, count_from
from dist_net.ground.shared_facts import REMEDIES, difference
from dist_net.nets.run_contents import confirm_recipe, load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.entry import use_threads
from dist_net.processes.equipment import blas_libraries, environment_of, kernel_digest
from dist_net.processes.terminal import CountProgress, plain_console
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.replayed_run import Replay
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Journal
from dist_net.training.worker.local_steps import GradientFunction, gradient_function


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="a run's directory")
    text = "stop at VERSION and write a checkpoint to the run directory"
    parser.add_argument("--to", type=count_from(0), metavar="VERSION", help=text)
    text = "start from this checkpoint instead of the initial weights"
    parser.add_argument("--from", dest="begin", type=Path, metavar="CHECKPOINT", help=text)
    add_trust_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Raise ``ReplayError`` if the replayed weights differ from the run's."""
    console, results = plain_console(), plain_console(stderr=False)
    directory = RunDirectory.newest() if arguments.run is None else RunDirectory.open(arguments.run)
    confirm_recipe(directory.path, arguments.trust_recipe)
    journal = read_journal(directory.journal)
    options = RunOptions.from_json(directory.options.read_text())
    restart_with(options.bits)
    loaded, dataset, _, settings = PreparedRun.read(
        load_run_recipe(directory, arguments.trust_recipe), options, console
    )

    def gradient_of(threads: int) -> GradientFunction:
        use_threads(threads)
        return gradient_function(loaded.recipe, dataset, settings.seed, threads)

    if options.data and (facts := difference(settings.recipe_digest, options.data.digest)):
        here, in_the_run, remedy = facts
        raise JournalMismatchError(f"this process has {here}, the run has {in_the_run}: {remedy}")
    use_threads(next(journal.starts()).threads)
    require_kernels(journal, kernel_digest(shape for _, shape in settings.layout))
    begin = None if arguments.begin is None else read_checkpoint(arguments.begin)
    initial = begin or loaded.recipe.initial_weights(settings.seed)
    replay = Replay(settings, journal, gradient_of, initial)
    if journal.fault is not None:
        console.print(f"the journal ends at version {journal.version:,}: {journal.fault}")
    with CountProgress(console, f"replaying {directory.path}", "updates replayed") as progress:
        result = replay.run(arguments.to, progress)
    if result.matches and arguments.to is not None:
        path = directory.path / f"replay-{result.version}.safetensors"
        write_checkpoint(path, replay.checkpoint())
        results.print(f"checkpoint: {path}")
    if result.matches:
        results.print(
            f"version {result.version:,} matches the run; SHA-256 of the weights: "
            f"{result.weights_sha256}"
        )
    if arguments.json:
        keys = "version", "weights_sha256", "matches"
        print_json({key: getattr(result, key) for key in keys})
    if not result.matches and result.version == 0:
        raise ReplayError(f"the initial weights differ from the run's: {REMEDIES['weights']}")
    if not result.matches:
        raise ReplayError(
            f"the weights differ from the run's at version {result.version:,}; the last version "
            f"that matches is {result.matched_version:,}. Replay with the same machine, libraries "
            f"and thread count as the run: rounding depends on them"
        )
    return 0


def restart_with(bits: str) -> None:
    """Replace this process by one that computes with these bits, unless it does."""
    variables = environment_of(bits)
    if not variables.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **variables})


def require_kernels(journal: Journal, own: int) -> None:
    """Raise JournalMismatchError if no worker of the run rounded as this process does."""
    if journal.kernels and own not in journal.kernels:
        raise JournalMismatchError(
            f"this process rounds differently than the run's workers: it computes with "
            f"{', '.join(blas_libraries())}; expected {' or '.join(journal.kernels.values())}. "
            f"Replay on such a processor with the same libraries; any can replay a run with --bits "
            f"portable"
        )
