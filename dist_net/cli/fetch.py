"""``dist-net fetch NAME``: put a dataset into the cache directory, and show how."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from dist_net.data import DATASETS, dataset_named, default_cache_dir
from dist_net.monitoring.fetch_progress import FetchProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_dir(),
        metavar="DIR",
        help="where fetched files are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL",
        help="an address to download from before the published one; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Fetch, say what is there, and return the exit code."""
    console = Console(stderr=True)
    with FetchProgress(console) as progress:
        dataset = dataset_named(arguments.name, arguments.cache_dir, progress, arguments.mirror)
    summary = {
        "dataset": dataset.name,
        "train_samples": len(dataset.train_images),
        "test_samples": len(dataset.test_images),
        "image_shape": dataset.image_shape,
        "classes": len(dataset.class_names),
    }
    console.print(
        f"{dataset.name}: {summary['train_samples']} images to train on and "
        f"{summary['test_samples']} to test on, in {summary['classes']} classes",
        highlight=False,
        soft_wrap=True,
    )
    if arguments.json:
        print(json.dumps(summary))
    return 0
