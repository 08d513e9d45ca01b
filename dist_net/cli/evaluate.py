"""``dist-net evaluate RUN``: a trained model's accuracy and loss on the test samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dist_net.cluster.command_line import add_trust_argument
from dist_net.cluster.terminal import FetchProgress, plain_console
from dist_net.models.run_directory import RunDirectory
from dist_net.models.trained_model import (
    calibrated_weights,
    calibration_of,
    held_out_of,
    load_trained,
)
from dist_net.training.evaluation import Evaluator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", help="a run's directory or checkpoint"
    )
    add_trust_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates, says the result, and gives the exit code."""
    console = plain_console()
    path = RunDirectory.newest().path if arguments.run is None else arguments.run
    loaded, checkpoint = load_trained(path, arguments.trust_recipe)
    dataset = held_out_of(path, loaded)
    if dataset is None:
        with FetchProgress(console) as progress:
            dataset = loaded.recipe.load_dataset(progress)
    weights = calibrated_weights(loaded, checkpoint, calibration_of(path))
    evaluation = Evaluator(loaded.recipe.model, dataset)(weights)
    console.print(
        f"{loaded.name}, version {checkpoint.version:,}: {evaluation} on {evaluation.samples:,} "
        f"samples"
    )
    if arguments.json:
        print(
            json.dumps(
                {
                    "test_accuracy": evaluation.accuracy,
                    "test_loss": evaluation.loss,
                    "samples": evaluation.samples,
                }
            )
        )
    return 0
