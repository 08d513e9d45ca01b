"""``dist-net predict MODEL FILE...``: classify images, or compute outputs for rows."""

import argparse
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.data.image_folder import IMAGE_SUFFIXES, refusal_of_name
from dist_net.errors import DatasetError, DistNetError, ModelSourceError
from dist_net.export.onnxruntime_engine import ENGINES, NUMPY
from dist_net.ground.command_line import add_options, add_trust_argument, count_from
from dist_net.ground.printable import printable
from dist_net.images.labels import is_unknown, top_predictions
from dist_net.nets.row_files import ROW_SUFFIXES, is_row_file, read_rows, write_rows, write_table
from dist_net.nets.run_contents import confirm_recipe
from dist_net.nets.sources.found_model import MODELS
from dist_net.nets.sources.named_source import RUN_PRECISION, parse_pool_sources
from dist_net.python.loaded_model import ClassifiedImage, LoadedModel, load

BAR_LENGTH = 20
MIN_COMPILED = 16
"""Fewer inputs are computed sooner by NumPy: loading compiled kernels takes half a second, and on
first use compiling them a few; Darknet-53 saves about a tenth of a second per image by them.
"""
ANSWER_COLUMNS = "image", "answer", "label", "probability", "error"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"{MODELS}; {RUN_PRECISION}")
    text = "an image, a folder of images, or the model's inputs as rows: .npy or .csv"
    parser.add_argument("files", metavar="FILE", nargs="+", help=text)
    output = (
        "write to a file: the likeliest class of each image to .csv, or the outputs of each row "
        "(probabilities or values) to .npy or .csv"
    )
    add_options(
        parser,
        ("--weights", Path, "FILE", "a Darknet .weights file"),
        ("--labels", Path, "FILE", "class names, one per line"),
        ("--top", count_from(1), "N", "classes shown", 5),
        ("--output", Path, "FILE", output),
    )
    text = "program that computes the model (default: numpy); .onnx files need onnxruntime"
    parser.add_argument("--engine", choices=ENGINES, default=NUMPY, help=text)
    add_trust_argument(parser)
    add_json_argument(parser, "for each image or row one")


def run(arguments: argparse.Namespace) -> int:
    files = [file for given in arguments.files for file in files_in(given)]
    has_rows = any(map(is_row_file, files))
    suffixes = ROW_SUFFIXES if has_rows else (".csv",)
    if arguments.output is not None and arguments.output.suffix.lower() not in suffixes:
        raise ModelSourceError(
            f"--output {arguments.output}: expected a {' or '.join(suffixes)} file name for the "
            f"outputs of {'rows' if has_rows else 'images'}"
        )
    (named,) = parse_pool_sources([arguments.model], arguments.weights, arguments.labels)
    confirm_recipe(named.source, arguments.trust_recipe)
    # Pillow's warnings about odd images are noise: real failures become the image's result.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    model = load(
        arguments.model,
        weights=arguments.weights,
        labels=arguments.labels,
        trust_recipe=arguments.trust_recipe,
        engine=arguments.engine,
    )
    return predict_rows(arguments, model, files) if has_rows else classify(arguments, model, files)


def files_in(given: str) -> list[str]:
    """Return the sorted images in a folder and its subfolders; any other path is one file."""
    if not Path(given).is_dir():
        return [given]
    inside = Path(given).rglob("[!.]*")
    images = [str(each) for each in inside if refusal_of_name(each.name) is None]
    if not images:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(f"no images in {given}; expected files ending in {endings}")
    return sorted(images)


def classify(arguments: argparse.Namespace, model: LoadedModel, images: list[str]) -> int:
    """Print the classes of every readable image, or write the likeliest; return the exit code."""
    model.compiled, unknown_below = len(images) >= MIN_COMPILED, model.found.unknown_below
    show = show_json if arguments.json else show_bars
    errors, rows = [], []
    answers = model.classify_each(images, arguments.top)
    for image, answer in zip(images, answers, strict=True):
        if arguments.output is None or isinstance(answer, DistNetError):
            show({"image": image}, answer, unknown_below)
        rows.append(answer_row(image, answer, unknown_below))
        if isinstance(answer, DistNetError):
            errors.append(answer)
    if arguments.output is not None:
        write_table(arguments.output, ANSWER_COLUMNS, rows)
    if len(errors) == len(images):
        return errors[0].exit_code
    return 1 if errors else 0


def answer_row(image: str, answer: ClassifiedImage, unknown_below: float) -> list[object]:
    """Return the ``ANSWER_COLUMNS`` of an image; ``answer`` is "unknown" below the threshold."""
    if isinstance(answer, DistNetError):
        return [image, "", "", "", str(answer)]
    best = answer[0]
    given = "unknown" if unknown_below and is_unknown(answer, unknown_below) else best.label
    return [image, given, best.label, f"{best.probability:.9g}", ""]


def predict_rows(arguments: argparse.Namespace, model: LoadedModel, files: list[str]) -> int:
    """Print the outputs of every row, or write them to a file; return the exit code."""
    found = model.found
    ends = [", ".join(each.name for each in specs) for specs in found.specs]
    if not found.is_batched or any(len(specs) > 1 for specs in found.specs):
        raise ModelSourceError(
            f"{arguments.model} computes {ends[1]} from {ends[0]}; expected one input and one "
            f"output of rows, or in Python: dist_net.load(FILE).predict(INPUTS)"
        )
    rows = {file: read_rows(Path(file), found.model) for file in files}
    model.compiled = sum(map(len, rows.values())) >= MIN_COMPILED
    compute = model.probabilities if found.labels else model.predict
    outputs = {file: compute(each) for file, each in rows.items()}
    if arguments.output is not None:
        write_rows(arguments.output, np.concatenate(list(outputs.values())))
        return 0
    for file, of_file in outputs.items():
        for number, output in enumerate(of_file):
            place = {"row": f"{file}:{number}"}
            if found.labels:
                show = show_json if arguments.json else show_bars
                predictions = top_predictions(output, found.labels, arguments.top)
                show(place, predictions, found.unknown_below)
            elif arguments.json:
                print_json(place | {"values": output.tolist()})
            else:
                print(",".join(f"{each:.9g}" for each in output.ravel()), flush=True)
    return 0


def show_json(place: Mapping[str, str], answer: ClassifiedImage, unknown_below: float) -> None:
    """Print a JSON object; it has the key ``unknown`` if the model has a threshold."""
    if isinstance(answer, DistNetError):
        print_json({**place, "error": str(answer)})
        return
    predictions = [
        {"index": each.index, "label": each.label, "probability": each.probability}
        for each in answer
    ]
    unknown = {"unknown": is_unknown(answer, unknown_below)} if unknown_below else {}
    print_json({**place, "predictions": predictions, **unknown})


def show_bars(place: Mapping[str, str], answer: ClassifiedImage, unknown_below: float) -> None:
    """Print the image's name and one bar per class; print errors to stderr."""
    if isinstance(answer, DistNetError):
        print(f"dist-net predict: {printable(str(answer))}", file=sys.stderr, flush=True)
        return
    name = printable(*place.values())
    if is_unknown(answer, unknown_below):
        print(f"{name}: unknown (no class reaches {unknown_below:.2%})")
    else:
        print(name)
    for each in answer:
        bar = "#" * round(each.probability * BAR_LENGTH)
        print(f"  {each.probability:7.2%}  {bar:{BAR_LENGTH}}  {printable(each.label)}", flush=True)
