"""``dist-net train FOLDER``: train a classifier on the images in a folder."""

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from dist_net.cli.hosted_run import train_to_the_end
from dist_net.data.image_folder import VALIDATION_SHARE
from dist_net.data.prepared_images import CACHE_BYTES
from dist_net.errors import SettingError
from dist_net.export.onnxruntime_engine import ENGINES
from dist_net.ground.command_line import AUTO, Option, add_options, number_or_auto
from dist_net.nets.recipe_origins import is_image_folder
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.bases import BASES, DEFAULT_BASE, NONE
from dist_net.photos.image_options import ImageOptions, new_run
from dist_net.photos.image_report import train_and_report
from dist_net.processes.terminal import plain_console
from dist_net.training.run.local_run import LocalRunSettings, RunHost
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import Publish, TrainingProgress

WITH_VALUES: tuple[Option, ...] = (
    ("--validation", float, "SHARE", f"split off without val/ (default: {VALIDATION_SHARE})"),
    (
        "--fine-tune",
        number_or_auto,
        "EPOCHS",
        f"then train the whole net for EPOCHS; {AUTO}: as many as suit the images, and none for "
        "heads that are good enough (default: 0, and an estimate)",
    ),
    ("--views", int, "N", "augmented variants per image to compute features of"),
    ("--rotate", float, "DEGREES", "turn training images by up to DEGREES (default: 5)"),
    ("--zoom", float, "PERCENT", "crop up to PERCENT of each side in training (default: 20)"),
    (
        "--group-by",
        str,
        "PATTERN",
        "regular expression; images whose paths it matches alike, such as bursts of one scene, "
        "are never split between training and evaluation",
    ),
    (
        "--precision",
        float,
        "SHARE",
        "share of predictions that must be right; less certain ones are reported as unknown "
        "(default: 0.95)",
    ),
    ("--cache-bytes", int, "N", f"size of the cache of prepared images (default: {CACHE_BYTES:,})"),
)

SWITCHES = {
    "flip": "mirror training images (default); not for classes that are mirror images",
    "colour-changes": "vary colours of training images (default); not for classes that differ in "
    "colour only",
    "groups": "never evaluate on copies of images that are trained on (default); not if "
    "images that look alike, as of a fixed camera, are different ones",
}
"""Options --NAME and --no-NAME, and their help."""


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training on a folder of images")
    group.add_argument("--base", metavar="NET", help=f"{BASES} (default: {DEFAULT_BASE})")
    group.add_argument(
        "--labels",
        dest="labels_csv",
        type=lambda path: str(Path(path).resolve()),
        metavar="FILE",
        help="a CSV file of path,label instead of class folders",
    )
    add_options(group, *WITH_VALUES)
    for name, text in SWITCHES.items():
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    text = "how images are made to fit the net (default: as the base was trained)"
    group.add_argument("--fitting", choices=("pad", "crop", "imagenet"), help=text)
    text = "program that computes the features (default: numpy)"
    group.add_argument("--engine", choices=ENGINES, help=text)


def image_options_given(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {each.name: vars(arguments).get(each.name) for each in fields(ImageOptions)}
    given["folder"] = arguments.recipe and str(Path(arguments.recipe).resolve())
    return {name: value for name, value in given.items() if value is not None}


def is_of_images(recipe: str | None, resumed: RunDirectory | None) -> bool:
    """Return whether the command trains on a folder or resumes a run on one."""
    if recipe is not None:
        return is_image_folder(recipe)
    return resumed is not None and resumed.folder.exists()


def require_no_image_options(arguments: argparse.Namespace) -> None:
    """Raise ``SettingError`` if a recipe's run is given an option of a run on a folder."""
    given = image_options_given(arguments)
    if names := given.keys() - {"folder"}:
        name = min(names)
        option = f"--{'no-' * (given[name] is False)}{name.removesuffix('_csv').replace('_', '-')}"
        raise SettingError(f"{option} is for a folder of images; pass a folder instead of a recipe")


def _run_asked_for(
    arguments: argparse.Namespace, directory: RunDirectory | None, given_run: Mapping[str, Any]
) -> tuple[RunDirectory, ImageOptions]:
    given = image_options_given(arguments)
    if directory is not None:
        before = ImageOptions.read(directory.folder)
        for name in ("folder", "base", "fitting"):
            if name in given and given[name] != getattr(before, name):
                raise SettingError(
                    f"{name}={given[name]}: the run in {directory.path} has "
                    f"{getattr(before, name)}; expected the same with --resume: start a new run "
                    f"with another --run-dir"
                )
        return directory, replace(before, run=before.run.replaced_by(**given_run), **given)
    run = RunOptions(IMAGES).replaced_by(**given_run)
    options = ImageOptions(run=run, **given)
    return new_run(arguments.run_dir, options), options


def train_images(
    arguments: argparse.Namespace,
    resumed: RunDirectory | None,
    given_run: Mapping[str, Any],
    publish: Publish | None = None,
) -> int:
    """Train on a folder with the options ``given_run``, report, and return the exit code."""
    asked = arguments.recipe or arguments.run_dir or "the newest run"
    if arguments.workers == 0:
        raise SettingError(
            f"{asked} is a folder of images, which needs a worker on this host; run dist-net "
            f"train with --workers of at least 1"
        )
    local = LocalRunSettings.from_arguments(arguments)
    directory, options = _run_asked_for(arguments, resumed, given_run)
    if arguments.listen and options.base != NONE and not options.fine_tune:
        directory.discard()
        raise SettingError(
            f"{asked} trains only a head, which takes seconds on this host; with --listen pass "
            f"--fine-tune {AUTO} or --base {NONE}, so that other hosts can train the whole net"
        )

    host = RunHost(directory, local, TrainingProgress(plain_console(), publish=publish))
    return train_to_the_end(partial(train_and_report, options), host, arguments)
