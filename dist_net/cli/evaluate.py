"""``dist-net evaluate RUN``: print a trained model's accuracy and loss on the test samples."""

import argparse
from pathlib import Path

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.ground.command_line import add_trust_argument
from dist_net.nets.run_contents import confirm_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.python.loaded_model import Run, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "a run's directory or checkpoint (default: the newest run under runs/)"
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help=text)
    add_trust_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    console = plain_console()
    path = arguments.run
    if path is None:
        path = RunDirectory.newest().path
        console.print(f"evaluating {path}, the newest run")
    confirm_recipe(path, arguments.trust_recipe)
    model = load(path, trust_recipe=arguments.trust_recipe)
    with FetchProgress(console) as progress:
        evaluation = model.evaluate(progress=progress)
    assert isinstance(model, Run)  # only runs have test samples
    loaded, checkpoint = model.contents
    on = f" on {evaluation.samples:,} samples" if evaluation.samples else ""
    plain_console(stderr=False).print(
        f"{loaded.name}, version {checkpoint.version:,}: {evaluation}{on}"
    )
    if arguments.json:
        figures = {"test_accuracy": evaluation.accuracy, "test_loss": evaluation.loss}
        print_json(figures | {"samples": evaluation.samples})
    return 0
