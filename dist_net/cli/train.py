"""``dist-net train``: train a recipe, or a classifier of a folder's images, on this host."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_net.cli.hosted_run import train_to_the_end
from dist_net.cli.parser import add_json_argument
from dist_net.cli.run_summary import DEFAULT_WORKERS
from dist_net.cli.served_run import (
    FollowDirectory,
    add_served_arguments,
    served_metrics,
    served_page,
)
from dist_net.data.image_folder import VALIDATION_SHARE
from dist_net.data.prepared_images import CACHE_BYTES
from dist_net.errors import AddressError, RunDirectoryError, SettingError
from dist_net.export.onnxruntime_engine import ENGINES
from dist_net.ground.command_line import (
    AUTO,
    Option,
    add_options,
    add_trust_argument,
    count_from,
    joining_command,
    number_or_auto,
)
from dist_net.nets.recipe_origins import is_image_folder
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.nets.recipes.recipe import load_recipe, recipe_names
from dist_net.nets.run_contents import confirm_recipe, load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.bases import BASES, DEFAULT_BASE, NONE
from dist_net.photos.image_options import ImageOptions, new_run
from dist_net.photos.image_report import train_and_report
from dist_net.processes.cluster_options import (
    add_cluster_arguments,
    add_invitation_arguments,
    ray_address,
    worker_count,
)
from dist_net.processes.equipment import BITS
from dist_net.processes.supervisor import RESTARTS
from dist_net.processes.terminal import plain_console
from dist_net.training.run.local_run import (
    KILLED_RUN_ENDS_S,
    START_TIMEOUT_S,
    LocalRunSettings,
    RunHost,
)
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import Publish, TrainingProgress
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.settings import MINORITY

DEFAULT_RECIPE = "fashion-mnist"
RESTORED = "workers", "listen", "keys", "contact"
OPTIONS_OF_RUNS = [each.name for each in fields(RunOptions) if each.name != "recipe"]

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
    "images": "keep images in the run directory, to evaluate it, for its report and for the page "
    "(default); labelled images that are not in the folder are kept in any case",
}
"""Options --NAME and --no-NAME, and their help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help=f"{', '.join(recipe_names())}, a folder of images, or the path of a Python file "
        f"(default: {DEFAULT_RECIPE})",
    )
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=argparse.SUPPRESS,  # of the resumed run, or DEFAULT_WORKERS
        metavar="N",
        help=f"worker processes (default: {DEFAULT_WORKERS}); 0: all workers join from other "
        "hosts; auto, with --cluster ray: as many as Ray has room for",
    )
    add_cluster_arguments(parser)
    _add_learning_arguments(parser.add_argument_group("learning (default: the recipe's values)"))
    _add_kept_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=("auto",),
        help="resume the run in --run-dir, or the newest run; auto: resume the run in --run-dir, "
        "or start one if none exists",
    )
    restarts = "restart each process that dies, up to N times"
    timeout = "a new process must report within this time that it is loading"
    add_options(
        parser,
        ("--restarts", count_from(0), "N", restarts, RESTARTS),
        ("--start-timeout", float, "SECONDS", timeout, START_TIMEOUT_S),
    )
    _add_opening_arguments(parser)
    add_trust_argument(parser)
    add_json_argument(parser)
    add_served_arguments(parser)
    add_image_arguments(parser)


def _add_opening_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers on other hosts")
    group.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="listen on ADDRESS, such as tcp://0.0.0.0:5555, and print the command to run on "
        "another host",
    )
    add_invitation_arguments(group)
    group.add_argument("--keys", type=Path, metavar="DIR", help="use these keys; create none")


def _add_learning_arguments(group: argparse._ArgumentGroup) -> None:
    decay = "for adamw: share of each weight, times the learning rate, to subtract per update"
    average = "use an exponential moving average of the weights, such as 0.999; 0: no average"
    steps = (
        "steps that each worker takes by itself between two exchanges with the server, fewer if it "
        "is slower than others; auto (default): as many as accuracy permits and the network needs"
    )
    add_options(
        group,
        ("--epochs", int, "N", "passes over the training samples"),
        ("--batch-size", int, "N", "samples per minibatch of a worker"),
        ("--optimizer", str, "NAME", "sgd, momentum, nesterov, adam, adamw, adagrad, rmsprop"),
        ("--learning-rate", float, "RATE", "factor of each update, before the recipe's schedule"),
        ("--weight-decay", float, "SHARE", decay),
        ("--clip-norm", float, "NORM", "scale larger gradients down to NORM; 0: none"),
        ("--average-decay", float, "DECAY", average),
        ("--local-steps", number_or_auto, "H", steps),
        ("--seed", int, "N", "of all random numbers (default: 0)"),
    )
    group.add_argument(
        "--consistency",
        choices=tuple(map(str, Consistency)),
        help="rounds (default): the server averages the results of all workers; async: it applies "
        "each at once; bsp: rounds of single steps",
    )


def _add_kept_arguments(parser: argparse.ArgumentParser) -> None:
    kept = "keep the last K checkpoints; a run resumes from the last undamaged one (default: 3)"
    sync = (
        "sync the journal of updates to disk: always, every SECONDS, or never (only with each "
        "checkpoint; default)"
    )
    takeover = "a standby takes over after so long a silence of the server (default: 5)"
    patience = "stop after N evaluations without improvement, and use the best weights; 0: never"
    add_options(
        parser,
        ("--run-dir", Path, "DIR", "files of the run (default: under runs/)"),
        ("--keep-checkpoints", int, "K", kept),
        ("--sync", str, "WHEN", sync),
        ("--patience", int, "N", patience),
        ("--checkpoint-every", float, "SECONDS", "time between checkpoints (default: 30)"),
        ("--takeover-after", float, "SECONDS", takeover),
    )
    text = (
        "portable: kernels that round alike on every x86-64 processor with AVX2, so that any can "
        "replay the run; fast (default): those of this processor"
    )
    parser.add_argument("--bits", choices=BITS, help=text)
    text = "pause (default) or continue while most hosts of a run with a standby are missing"
    parser.add_argument("--minority", choices=MINORITY, help=text)
    text = "the weights to use later (default: last)"
    parser.add_argument("--keep", choices=("last", "best"), help=text)
    text = "also write the metrics for TensorBoard"
    parser.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, help=text)


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


def run(arguments: argparse.Namespace) -> int:
    console = plain_console()
    directory = resumed_directory(arguments)
    restore_cluster(arguments, directory, console)
    arguments.ray = ray_address(arguments, arguments.workers)
    if arguments.ray and (arguments.listen or arguments.keys or arguments.workers == 0):
        raise SettingError(
            "--cluster ray cannot be combined with --listen, --keys or --workers=0: Ray places the "
            "workers and distributes the keys"
        )
    if arguments.command == "parameter-server" and not arguments.listen:
        raise AddressError(
            "no address to listen on; pass --listen tcp://HOST:PORT, this host's address"
        )
    with served_metrics(arguments, console) as publish, served_page(arguments, console) as follow:
        return _train(arguments, directory, console, publish, follow)


def restore_cluster(
    arguments: argparse.Namespace, directory: RunDirectory | None, console: Console
) -> None:
    """Set options of the cluster that are not given to those of the resumed run; print them."""
    given, words = vars(arguments), []
    absent: list[Any] = [None, [], ()]
    if directory is not None and arguments.cluster == "local":
        before = LocalRunSettings.of_run(directory)
        for name, value in {"workers": before.workers, **vars(before.listening)}.items():
            if name in RESTORED and given.get(name) in absent and value not in absent:
                given[name] = value
                for each in value if name == "listen" else [value]:
                    words += [f"--{name}", str(each)]
    if words:
        console.print(f"resuming with the run's {shlex.join(words)}")
    given.setdefault("workers", DEFAULT_WORKERS)


def _train(
    arguments: argparse.Namespace,
    directory: RunDirectory | None,
    console: Console,
    publish: Publish | None,
    follow: FollowDirectory,
) -> int:
    given = {name: vars(arguments).get(name.removesuffix("_s")) for name in OPTIONS_OF_RUNS}
    if arguments.keep is not None:
        given["keeps_best"] = arguments.keep == "best"
    if is_of_images(arguments.recipe, directory):
        return train_images(arguments, directory, given, publish, follow)
    require_no_image_options(arguments)
    options = RunOptions(DEFAULT_RECIPE)
    if directory is not None:
        options = RunOptions.from_json(directory.options.read_text())
    options = options.replaced_by(recipe=arguments.recipe, **given)
    if directory is None or arguments.recipe is not None:
        loaded = load_recipe(options.recipe)
    else:
        confirm_recipe(directory.path, arguments.trust_recipe)
        loaded = load_run_recipe(directory, arguments.trust_recipe)
    prepared = PreparedRun.read(loaded, options, console)
    local = LocalRunSettings.from_arguments(arguments)

    def joining(address: str) -> str:
        return joining_command("worker", loaded.reference, address=address, keys=arguments.keys)

    directory = directory or RunDirectory.create(arguments.run_dir, loaded.name, datetime.now())

    display = TrainingProgress(console, None if arguments.ray else joining, publish, follow)
    return train_to_the_end(prepared.train, RunHost(directory, local, display), arguments)


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
    follow: FollowDirectory = lambda _: None,
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

    host = RunHost(directory, local, TrainingProgress(plain_console(), None, publish, follow))
    return train_to_the_end(partial(train_and_report, options), host, arguments)


def resumed_directory(arguments: argparse.Namespace) -> RunDirectory | None:
    """Return the directory of the run to resume, None for a new run; raise RunDirectoryError."""
    path, is_auto = arguments.run_dir, arguments.resume == "auto"
    is_new = is_auto and not (path and RunDirectory(path).holds_run)
    if is_new and None in (path, arguments.recipe):
        raise RunDirectoryError(
            f"--resume auto, and no run to resume in {path or 'any --run-dir'}; to start one "
            f"there, also pass RECIPE and --run-dir DIR"
        )
    if is_new or not arguments.resume:
        return None
    run = RunDirectory.newest(has_model=False) if path is None else RunDirectory.open(path)
    run = run.latest_copy
    with run.locked(KILLED_RUN_ENDS_S):  # the server of a killed run writes its checkpoint first
        return run
