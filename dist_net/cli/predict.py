"""``dist-net predict MODEL PICTURE...``: classify pictures."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from dist_net.cli.parser import count_from
from dist_net.cluster.command_line import add_trust_argument
from dist_net.cluster.cores import available_cores
from dist_net.cluster.recipe_confirmation import confirm_recipe
from dist_net.cluster.terminal import FetchProgress, plain_console
from dist_net.errors import DistNetError, UnknownModelError
from dist_net.models.classifier import ClassifiedImage, Classifier, classifier_called
from dist_net.models.sources import MODELS

BAR_LENGTH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    given = (
        parser.add_argument("model", metavar="MODEL", help=MODELS),
        parser.add_argument("images", metavar="IMAGE", nargs="+", help="the file of a picture"),
    )
    for action in given:  # ``run`` explains better than a parser what is missing
        action.required = False
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a .weights file of Darknet's")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="the name of each class, a line"
    )
    parser.add_argument("--top", type=count_from(1), default=5, metavar="N", help="default: 5")
    add_trust_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object for each picture")


def run(arguments: argparse.Namespace) -> int:
    """Answers for every picture that it can, and gives the exit code."""
    if not arguments.images:
        missing = "no model and no picture" if arguments.model is None else "no picture"
        raise UnknownModelError(
            f"{missing} given; expected MODEL IMAGE..., where MODEL is {MODELS}"
        )
    confirm_recipe(arguments.model, arguments.trust_recipe)
    # Decoders warn of oddities in a picture; those that matter become its answer.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with FetchProgress(plain_console()) as progress:
        classifier = classifier_called(
            arguments.model,
            arguments.weights,
            arguments.labels,
            progress,
            threads=available_cores(),
            trust_recipe=arguments.trust_recipe,
        )
    show = show_json if arguments.json else show_bars
    errors = []
    answers = classifier.predict_each(arguments.images, arguments.top)
    for image, answer in zip(arguments.images, answers, strict=True):
        show(classifier, image, answer)
        if isinstance(answer, DistNetError):
            errors.append(answer)
    if len(errors) == len(arguments.images):
        return errors[0].exit_code
    return 1 if errors else 0


def show_json(classifier: Classifier, image: str, answer: ClassifiedImage) -> None:
    """Prints a JSON object, with the key ``unknown`` for a classifier that has a threshold."""
    if isinstance(answer, DistNetError):
        print(json.dumps({"image": image, "error": str(answer)}), flush=True)
        return
    predictions = [
        {"index": each.index, "label": each.label, "probability": each.probability}
        for each in answer
    ]
    unknown = {"unknown": classifier.is_unknown(answer)} if classifier.unknown_below else {}
    print(json.dumps({"image": image, "predictions": predictions} | unknown), flush=True)


def show_bars(classifier: Classifier, image: str, answer: ClassifiedImage) -> None:
    """Prints the picture's name, and a line with a bar for each class; errors go to stderr."""
    if isinstance(answer, DistNetError):
        print(f"dist-net predict: {answer}", file=sys.stderr, flush=True)
        return
    if classifier.is_unknown(answer):
        print(f"{image}: unknown (no class reaches {classifier.unknown_below:.2%})")
    else:
        print(image)
    for each in answer:
        bar = "#" * round(each.probability * BAR_LENGTH)
        print(f"  {each.probability:7.2%}  {bar:{BAR_LENGTH}}  {each.label}", flush=True)
