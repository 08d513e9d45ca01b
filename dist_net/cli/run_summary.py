"""The summary that a run prints at its end."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_net.cli.parser import print_json
from dist_net.errors import BadInputError, DistNetError, InterruptedRunError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.ground.command_line import AUTO, command_line
from dist_net.ground.printable import counted
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import plain_console
from dist_net.training.run.training_progress import exchange_facts

DEFAULT_WORKERS = 2


def show_summary(summary: dict[str, Any], as_json: bool) -> None:
    """Print the results of the run and the next command; with ``as_json`` also the JSON object.

    The figures of a run on a folder of images are from its report.
    """
    console = plain_console(stderr=False)
    if as_json:
        print_json(summary)
    accuracy, loss = summary["test_accuracy"], summary["test_loss"]
    measured = "trained" if loss is None else f"test loss {loss:#.4g}"
    if accuracy is not None:
        measured = f"test accuracy {accuracy:.2%}"
    directory, more = RunDirectory(Path(summary["run_dir"])), list[str]()
    if content := directory.read_report():
        measured = _figures(content["measured"][-1])
        more = [_answers(content), *_bad_classes(content["classes"])]
        more += [content["learning"]["advice"]] if content["learning"] else []
        more += [_other_objects(content["left_out"])] if content["left_out"] else []
        more.append(". ".join(f"{name}: {text}" for name, text in content["terms"].items()))
        more.append(f"report: {directory.report}, explained in docs/photos.md")
    console.print(measured, style="bold", end="")
    if not summary["pushes_applied"]:  # a head, which this process trained
        console.print(f" ({summary['seconds']:.1f} s)")
    else:
        console.print(
            f" at version {summary['version']:,}, after {summary['samples']:,} samples in "
            f"{summary['seconds']:.1f} s: {summary['samples_per_s']:,.0f} samples/s; "
            f"{exchange_facts(summary)}"
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


def _figures(measured: Mapping[str, Any]) -> str:
    """Return the figures of the report on the data measured last: ``test/``, if there is one."""
    low, high = measured["accuracy_interval"]
    return (
        f"{measured['right']:,} of {measured['images']:,} right: {measured['accuracy']:.1%} "
        f"({low:.1%} to {high:.1%}); measured on {measured['data']}"
    )


def _answers(content: Mapping[str, Any]) -> str:
    """Return in words what the threshold does to these images, and how to have more answered."""
    measured, doubtful = content["measured"][-1], len(content["doubtful"])
    answered, right, images = (measured[each] for each in ("answered", "answered_right", "images"))
    of_these = ", all right" if right == answered else f", {right:,} of them right"
    text = f"the model answers {answered:,} of your {images:,} images{of_these * bool(answered)}"
    if answered < images:
        text += "; it calls the others unknown"
        text += f": check the {counted(doubtful, 'doubtful label')} first" if doubtful else ""
        more = [
            f"{each['precision']:g} (answers {each['answered']:.0%})"
            for each in reversed(content["calibration"]["choices"])
            if each["answered"] * images > answered
        ]
        if more:
            text += f"; to have more answered, serve RUN,precision={' or '.join(more)}"
    return text


def _bad_classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each class that the accuracy of all images hides."""
    return [
        f"class {each['name']!r} ({each['warning']}): {right:,} of its "
        f"{counted(each['images'], 'image')} right; add images of it"
        for each in classes
        if each["warning"]
        for right in (round((each["recall"] or 0) * each["images"]),)
    ]


def _other_objects(left_out: Sequence[Mapping[str, Any]]) -> str:
    """Return how often images of unknown classes are noticed: those left out in the report."""
    shares = [each["unknown"] for each in left_out]
    bounds = dict.fromkeys(f"{each:.0%}" for each in (min(shares), max(shares)))
    return (
        f"images of other classes: {' to '.join(bounds)} are reported as unknown, the others as "
        f"one of these classes (measured by leaving out each class)"
    )


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
    """Return what the directory holds of a run that ended early, and the command to resume it."""
    words: list[object] = ["--resume", "--run-dir", directory.path]
    if arguments.command == "join":  # as a standby
        if not directory.checkpoint.exists():
            return f"no copy of the run has arrived: {directory.path} cannot be resumed"
        version = read_checkpoint(directory.checkpoint).version
        resume = command_line("train", *words)
        return f"{directory.path} holds version {version:,}; resume with: {resume}"
    if not directory.holds_run:
        return "the run has not begun"
    words.insert(0, arguments.command)
    if arguments.cluster != "local":
        workers = AUTO if arguments.workers is None else arguments.workers
        words += ["--cluster", arguments.cluster, "--workers", workers]
        words += ["--address", arguments.address] if arguments.address else []
    for option in ("metrics", "metrics-token-file", "page", "page-token-file"):
        if (value := vars(arguments).get(option.replace("-", "_"))) is not None:
            words += [f"--{option}", value]
    return f"resume with: {command_line(*words)}"
