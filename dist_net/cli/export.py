"""``dist-net export MODEL FILE``: write a trained model in a standard format."""

import argparse
from pathlib import Path

from dist_net.errors import ExportError
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import FORMATS, format_of, write_exported
from dist_net.ground.command_line import add_options, add_trust_argument
from dist_net.nets.run_contents import confirm_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.found_model import MODELS
from dist_net.nets.sources.named_source import LIVE, RUN_PRECISION, parse_pool_sources
from dist_net.processes.terminal import FetchProgress, plain_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"{MODELS}; {RUN_PRECISION}")
    text = "the file to write: .onnx, .safetensors or .npz"
    parser.add_argument("file", metavar="FILE", type=Path, help=text)
    text = "format of FILE (default: its extension)"
    parser.add_argument("--format", choices=list(FORMATS), help=text)
    text = "with onnx: accept images of any size and output probabilities"
    parser.add_argument("--preprocessing", action="store_true", help=text)
    add_options(
        parser,
        ("--weights", Path, "FILE", "a Darknet .weights file"),
        ("--labels", Path, "FILE", "class names, one per line"),
    )
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    file = arguments.file
    format = format_of(file, arguments.format, arguments.preprocessing)
    (named,) = parse_pool_sources([arguments.model], arguments.weights, arguments.labels)
    require_another_file(named.source, named.weights, file)
    confirm_recipe(named.source, arguments.trust_recipe)
    with FetchProgress(plain_console()) as progress:
        found = named.open(progress, trust_recipe=arguments.trust_recipe).read()
    exported = ExportedModel(named.name, found, found.weights(), arguments.preprocessing)
    written = write_exported(file, format, exported)
    plain_console(stderr=False).print(
        f"{file}: {exported.name} as {format}, {found.own_model.layout.size:,} parameters, "
        f"{written:,} bytes"
    )
    return 0


def require_another_file(model: str, weights: Path | None, file: Path) -> None:
    """Raise if the model is still in training, or if ``file`` is one of the model's own files."""
    if model.startswith(LIVE):
        raise ExportError(
            f"{model} is being trained; expected the directory of its run, to export the last "
            f"checkpoint"
        )
    run = RunDirectory(Path(model))
    sources = (run.path, run.checkpoint, run.best, weights)
    if any(each and each.exists() and file.exists() and file.samefile(each) for each in sources):
        raise ExportError(f"{file} is an input of this export; expected another FILE to write")
