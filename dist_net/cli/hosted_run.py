"""Train on this host, or as a standby of the server on another host that continues the run."""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dist_net.cli.run_summary import explained_end, show_summary
from dist_net.data.image_folder import ImageFolder
from dist_net.errors import DatasetError, RecipeError, SupersededError
from dist_net.ground.printable import counted
from dist_net.nets.observer import Following
from dist_net.nets.offered_recipe import ImageManifest, OfferedRecipe
from dist_net.nets.recipe_origins import MANIFEST, ImagesOrigin
from dist_net.nets.run_contents import confirm_code, load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_report import train_and_report
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.training.run.joined_run import ANSWER_TIMEOUT_S, offered_by
from dist_net.training.run.local_run import RunHost
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.standby_run import successor_of
from dist_net.wire.security import (
    OPERATOR,
    STANDBY,
    add_keys,
    create_keys,
    has_server_keys,
    write_peer_keys,
)
from dist_net.wire.standbys import term_number
from dist_net.wire.transport import ServerAccess

Train = Callable[[RunHost], dict[str, Any]]
"""Train on a host, and return the JSON object of ``dist-net train``."""


def train_to_the_end(train: Train, host: RunHost, arguments: argparse.Namespace) -> int:
    """Train, show the result, and return the exit code.

    If a server on another host continues the run, before or during ``train``, this host becomes its
    standby. A directory that this host has served from remains as it is, with the copy beside it.
    """
    with explained_end(arguments, host.directory):
        run = successor_of(host.directory, host.local.listening.keys)
        while True:
            if run is not None:
                train, host = _join_successor(run, host, arguments)
            try:
                summary = train(host)
                break
            except SupersededError as error:
                run = successor_of(host.directory, host.local.listening.keys)
                if run is None:
                    raise
                host.display.warned(str(error))
    show_summary(summary, arguments.json)
    return 0


def _join_successor(
    run: Following, host: RunHost, arguments: argparse.Namespace
) -> tuple[Train, RunHost]:
    directory, local = host.directory, host.local
    offered = offered_by(run.server, ANSWER_TIMEOUT_S)
    arguments.data = Path(RunOptions.from_json(directory.options.read_text()).recipe).parent
    if directory.folder.exists():
        arguments.data = Path(ImageOptions.read(directory.folder).folder)
    if directory.owner.exists():
        directory = directory.copy_of_term(term_number(run.places.term))
    host.display.console.print(
        f"the run continues at {run.server.address}: this host joins it, as a standby with "
        f"{counted(local.workers or 0, 'worker')}, and copies it to {directory.path}"
    )
    local = replace(local, listening=replace(local.listening, keys=None))
    return standby_of(run.server, offered, RunHost(directory, local, host.display), arguments)


def standby_of(
    server: ServerAccess, offered: OfferedRecipe, host: RunHost, arguments: argparse.Namespace
) -> tuple[Train, RunHost]:
    """Return a function that copies the run to the host, and continues it if necessary."""
    directory, keys = host.directory, None
    if server.keys is not None:
        if not has_server_keys(directory.keys):
            create_keys(directory.keys, (server.keys.public, server.keys.secret))
            add_keys(directory.keys, OPERATOR)
        keys = directory.keys / STANDBY
        shutil.rmtree(keys, ignore_errors=True)  # of a server before
        write_peer_keys(keys, server.keys, STANDBY)
    host = replace(host, follows=Following(server, keys, digest=offered.digest))
    if isinstance(offered.origin, ImagesOrigin):
        manifest, found = images_of(offered, arguments.data)
        directory.write(directory.folder, manifest.options)
        of_images = ImageOptions.read(directory.folder).for_copy(found.root)
        return partial(train_and_report, of_images), host
    prepare_recipe(offered, directory, arguments)
    own = RunOptions.from_json(directory.options.read_text())
    options = replace(RunOptions.from_json(offered.options), recipe=own.recipe)
    loaded = load_run_recipe(directory, True)
    return PreparedRun.read(loaded, options, host.display.console).train, host


def prepare_recipe(
    offered: OfferedRecipe, directory: RunDirectory, arguments: argparse.Namespace
) -> bool:
    """Prepare recipe and data; return whether a worker may fork: libraries may have threads."""
    offered.keep(directory, data=arguments.data)
    if offered.origin.is_code:
        what = f"the recipe {offered.name!r} of the server's host"
        confirm_code(what, directory.path, offered.file_digests, arguments.trust_recipe)
    with FetchProgress(plain_console()) as fetching:
        try:
            recipe = load_run_recipe(directory, trust_recipe=True).recipe
            recipe.load_dataset(fetching)
            return recipe.network is not None
        except RecipeError as error:
            if offered.origin.is_code and arguments.data is None:
                error.add_note("if the recipe expects data next to its file, pass --data FOLDER")
            raise


def images_of(offered: OfferedRecipe, folder: Path | None) -> tuple[ImageManifest, ImageFolder]:
    """Return the offered list of images, and these in the folder. Raise DatasetError."""
    manifest = ImageManifest.from_json(offered.files.get(MANIFEST, b""))
    if folder is None:
        raise DatasetError(
            f"the server trains on its folder {offered.name!r}, with {manifest}; expected the "
            f"same folder on this host: --data FOLDER"
        )
    return manifest, manifest.found_in(folder.resolve())
