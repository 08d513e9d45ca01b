"""The summary that a run prints at its end."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dist_net.command_line import AUTO, command_line
from dist_net.errors import BadInputError, DistNetError, InterruptedRunError
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import plain_console
from dist_net.training.run.training_progress import exchange_facts

DEFAULT_WORKERS = 2


def show_summary(
    summary: dict[str, Any], as_json: bool, result: str = "", more: Sequence[str] = ()
) -> None:
    """Print the results of the run and the next command to stdout, and last the JSON object.

    ``result`` replaces the test accuracy; ``more`` are further lines. The summary is empty if the
    run ended on another host before it could report here.
    """
    console = plain_console(stderr=False)
    if not summary:
        console.print("the run is done")
        return
    accuracy, loss = summary["test_accuracy"], summary["test_loss"]
    measured = "trained" if loss is None else f"test loss {loss:#.4g}"
    if accuracy is not None:
        measured = f"test accuracy {accuracy:.2%}"
    console.print(result or measured, style="bold", end="")
    if not summary["pushes_applied"]:  # a head, which this process trained
        console.print(f" ({summary['seconds']:.1f} s)")
    else:
        console.print(
            f" after {summary['samples']:,} samples in {summary['seconds']:.1f} s: "
            f"{summary['samples_per_s']:,.0f} samples/s; {exchange_facts(summary)}"
        )
    if summary["workers_joined"]:
        console.print(
            f"workers: {summary['workers_joined']:,} joined, {summary['workers_lost']:,} lost"
        )
    received, sent = summary["bytes_received_per_sample"], summary["bytes_sent_per_sample"]
    if received or sent:
        console.print(f"network: {received:,.0f} bytes received and {sent:,.0f} sent per sample")
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow")
    console.print(
        f"run directory: {summary['run_dir']}\nnext: {command_line('evaluate', summary['run_dir'])}"
    )
    for line in more:
        console.print(line)
    if as_json:
        print(json.dumps(summary))


@contextmanager
def explained_end(arguments: argparse.Namespace, directory: RunDirectory) -> Iterator[None]:
    """Add the command that resumes the run to each error that ends it."""
    try:
        yield
    except BadInputError:
        raise
    except (KeyboardInterrupt, DistNetError) as end:
        error = end if isinstance(end, DistNetError) else InterruptedRunError("interrupted")
        error.add_note(how_to_go_on(arguments, directory))
        raise error from end.__cause__


def how_to_go_on(arguments: argparse.Namespace, directory: RunDirectory) -> str:
    """Return the command that resumes a run that ended early."""
    if not directory.holds_run:
        return "the run has not begun"
    words: list[object] = [arguments.command, "--resume", "--run-dir", directory.path]
    if arguments.cluster != "local":
        workers = AUTO if arguments.workers is None else arguments.workers
        words += ["--cluster", arguments.cluster, "--workers", workers]
        words += ["--address", arguments.address] if arguments.address else []
    for option in ("metrics", "metrics-token-file"):
        if (value := vars(arguments).get(option.replace("-", "_"))) is not None:
            words += [f"--{option}", value]
    return f"resume with: {command_line(*words)}"
