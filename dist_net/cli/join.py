"""``dist-net join``: add this host's workers to a run of another host, by a token or by keys."""

import argparse
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.cli.run_summary import explained_end, show_summary
from dist_net.data import default_cache_dir
from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImageCache
from dist_net.errors import BadInputError, DatasetError, DistNetError, RecipeError, SupersededError
from dist_net.ground.command_line import (
    add_options,
    add_trust_argument,
    count_from,
    count_or_auto,
    importing,
)
from dist_net.ground.printable import counted
from dist_net.nets.observer import Following
from dist_net.nets.offered_recipe import ImageManifest, OfferedRecipe
from dist_net.nets.recipe_origins import MANIFEST, ImagesOrigin
from dist_net.nets.recipes.image_recipe import RECIPE_JSON, ImageRecipe
from dist_net.nets.run_contents import confirm_code, load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_preparation import prepare_images
from dist_net.photos.image_report import train_and_report
from dist_net.processes.cluster_options import add_server_arguments, server_given
from dist_net.processes.cores import available_cores
from dist_net.processes.kernels import bits_in
from dist_net.processes.listen_options import ListenOptions
from dist_net.processes.own_directory import announce, open_logs, temporary_directory
from dist_net.processes.supervisor import RESTARTS
from dist_net.processes.terminal import CountProgress, FetchProgress, plain_console
from dist_net.processes.token_arguments import token_given
from dist_net.training.run.joined_run import (
    ANSWER_TIMEOUT_S,
    JoinedRun,
    JoinedRunSettings,
    offered_by,
)
from dist_net.training.run.local_run import LocalRunSettings
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.successor import successor_of
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.training.run.training_worker_process import add_worker_arguments
from dist_net.wire.security import (
    OPERATOR,
    STANDBY,
    add_keys,
    create_keys,
    has_server_keys,
    load_peer_keys,
    write_peer_keys,
)
from dist_net.wire.standbys import ServerRoute, term_number
from dist_net.wire.token import STANDBY_OF_RUN, TRAINING, JoinToken
from dist_net.wire.token_exchange import join_by_token
from dist_net.wire.transport import ServerAccess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser, "server", "'dist-net train --listen ADDRESS'")
    data = (
        "the run's data for this host: its folder of images, or the directory of the data that the "
        "recipe expects next to its file; also a URL of fsspec (the extra remote)"
    )
    restarts = "restart each worker that dies, up to N times"
    directory = "of a standby: the copy of the run (default: in the cache)"
    listen = "of a standby: where it listens once it serves the run (default: any free port)"
    add_options(
        parser,
        ("--workers", count_or_auto(0), "N", "worker processes (default: cores / --threads)"),
        ("--data", str, "FOLDER", data),
        ("--restarts", count_from(0), "N", restarts, RESTARTS),
        ("--run-dir", Path, "DIR", directory),
        ("--listen", str, "ADDRESS", listen),
        ("--contact", str, "HOST", "of a standby: this host's name or IP address for others"),
    )
    add_trust_argument(parser)
    add_json_argument(parser)
    add_worker_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    console = plain_console()
    settings = settings_of(arguments)
    token = None if arguments.connect else token_given(arguments, TRAINING, STANDBY_OF_RUN)
    if token is not None and token.kind == STANDBY_OF_RUN:
        return _stand_by(arguments, join_by_token(token, STANDBY, arguments.timeout), console)
    route = ServerRoute()
    if token is not None:
        kept = default_cache_dir() / "joined" / token.identity
        server = _join(token, kept, route, arguments.timeout)
    else:
        server = server_given(arguments, TRAINING)
    with ExitStack() as opened:
        temporary = opened.enter_context(temporary_directory())
        directory = RunDirectory(temporary / "run")
        directory.make()
        if server.keys is not None:
            write_peer_keys(directory.keys, server.keys)
            announce(temporary, [server.address], directory.keys)
        arguments.data = local_data(arguments.data, opened)
        offered = offered_by(server, arguments.timeout)
        settings = replace(settings, workers=workers_of(arguments), bits=bits_in(offered.digest))
        if isinstance(offered.origin, ImagesOrigin):
            prepare_folder(offered, arguments.data, directory, console, opened)
        else:
            may_fork = prepare_recipe(offered, directory, arguments, console)
            settings = replace(settings, may_fork=may_fork)
        logs = open_logs(opened, "join-", directory.logs)
        display = opened.enter_context(TrainingProgress(console))
        console.print(
            f"{offered.name}: joining {server.address} with {counted(settings.workers, 'worker')}"
        )
        try:
            JoinedRun(server, directory, logs, settings, display, route).run()
        except BaseException:
            if token is not None and route.text:  # a standby may continue the run
                with suppress(OSError):
                    shutil.copytree(directory.keys, kept, dirs_exist_ok=True)
                    (kept / "places").write_text(route.text)
            raise
        if token is not None:
            shutil.rmtree(kept, ignore_errors=True)
    plain_console(stderr=False).print(f"{offered.name}: the run is done")
    if arguments.json:
        print_json({"recipe": offered.name, "server": server.address})
    return 0


def _join(token: JoinToken, kept: Path, route: ServerRoute, timeout_s: float) -> ServerAccess:
    """Join by a token, or where its run continues, if this host joined before, and has ``kept``."""
    try:
        return join_by_token(token, timeout_s=timeout_s)
    except DistNetError:
        with suppress(DistNetError, OSError):
            route.learn((kept / "places").read_text())
            route.turn()
            run = Following(ServerAccess(token.addresses[0], load_peer_keys(kept)), route=route)
            with run.observed(timeout_s):
                return run.server
        raise


def _stand_by(arguments: argparse.Namespace, server: ServerAccess, console: Console) -> int:
    offered = offered_by(server, arguments.timeout)
    parent = default_cache_dir() / "standbys"
    path = arguments.run_dir or parent / f"{offered.name}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = RunDirectory.create(path, offered.name, datetime.now())
    own_host = "127.0.0.1" if server.keys is None else "0.0.0.0"
    listen = (arguments.listen or f"tcp://{own_host}:0",)
    listening = ListenOptions(listen, contact=arguments.contact)
    local = LocalRunSettings(
        workers_of(arguments),
        listening,
        arguments.restarts,
        rejoin_timeout_s=arguments.rejoin_timeout,
    )
    display = TrainingProgress(console)
    with ExitStack() as opened:
        arguments.data = local_data(arguments.data, opened)
        try:
            train = standby_of(server, offered, directory, local, display, arguments)
            with explained_end(arguments, directory):
                summary = train_anywhere(train, directory, local, display, arguments)
        except BadInputError:
            if not directory.has_begun:
                directory.discard()
            raise
    show_summary(summary, arguments.json)
    return 0


def train_anywhere(
    train: Callable[[], dict[str, Any]],
    directory: RunDirectory,
    local: LocalRunSettings,
    display: TrainingProgress,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return the result of ``train`` in ``directory``, or of the same run on another host.

    If a server on another host continues the run, before or during ``train``, this host becomes its
    standby. A directory that this host has served from remains as it is, with the copy beside it.
    """
    console, successor = plain_console(), successor_of(directory, local.listening.keys)
    while True:
        if successor is not None:
            server, term = successor
            offered = offered_by(server, ANSWER_TIMEOUT_S)
            recipe = RunOptions.from_json(directory.options.read_text()).recipe
            arguments.data = Path(recipe).parent
            if directory.folder.exists():
                arguments.data = Path(ImageOptions.read(directory.folder).folder)
            if directory.owner.exists():
                directory = directory.copy_of_term(term_number(term))
            console.print(
                f"the run continues at {server.address}: this host joins it, as a standby with "
                f"{counted(local.workers or 0, 'worker')}, and copies it to {directory.path}"
            )
            local = replace(local, listening=replace(local.listening, keys=None))
            train = standby_of(server, offered, directory, local, display, arguments)
        try:
            return train()
        except SupersededError as error:
            if (successor := successor_of(directory, local.listening.keys)) is None:
                raise
            console.print(str(error), style="yellow")


def standby_of(
    server: ServerAccess,
    offered: OfferedRecipe,
    directory: RunDirectory,
    local: LocalRunSettings,
    display: TrainingProgress,
    arguments: argparse.Namespace,
) -> Callable[[], dict[str, Any]]:
    """Return a function that copies the run to ``directory``, and continues it if necessary."""
    console, keys = plain_console(), None
    if server.keys is not None:
        if not has_server_keys(directory.keys):
            create_keys(directory.keys, (server.keys.public, server.keys.secret))
            add_keys(directory.keys, OPERATOR)
        keys = directory.keys / STANDBY
        shutil.rmtree(keys, ignore_errors=True)  # of a server before
        write_peer_keys(keys, server.keys, STANDBY)
    following = Following(server, keys, digest=offered.digest)
    if isinstance(offered.origin, ImagesOrigin):
        manifest, found = images_of(offered, arguments.data)
        directory.write(directory.folder, manifest.options)
        of_images = ImageOptions.read(directory.folder).for_copy(found.root)
        return partial(train_and_report, directory, of_images, local, console, display, following)
    prepare_recipe(offered, directory, arguments, console)
    own = RunOptions.from_json(directory.options.read_text())
    options = replace(RunOptions.from_json(offered.options), recipe=own.recipe)
    prepared = PreparedRun.read(load_run_recipe(directory, True), options, console)
    return partial(prepared.train, directory, local, console, display, following)


def local_data(data: str | None, opened: ExitStack) -> Path | None:
    """Return the path of the data, or of a copy of what a URL names, until ``opened`` is closed.

    Raise MissingExtraError without fsspec, and DatasetError if the URL cannot be read.
    """
    if data is None or "://" not in data:
        return None if data is None else Path(data)
    with importing("remote", f"--data {data}"):
        import fsspec
    copy = opened.enter_context(temporary_directory()) / "data"
    try:
        chain = data.split("::")
        if all("://" in each or each in fsspec.available_protocols() for each in chain):
            filesystem, root = fsspec.core.url_to_fs(data)
        else:  # "::" in a name, which fsspec takes for a chain of URLs
            kind = fsspec.get_filesystem_class(data.partition("://")[0])
            filesystem = kind(**kind._get_kwargs_from_urls(data))
            root = kind._strip_protocol(data)
        root = root.rstrip("/")
        files = filesystem.find(root)  # unlike ``get``, without patterns such as [2024]
        if files in ([], [root]):
            raise ValueError("it is no directory of files")
        for name in files:
            place = PurePosixPath(name.removeprefix(root).lstrip("/"))
            if ".." in place.parts:  # fsspec writes such a file outside of the copy
                raise ValueError(f"{name} lies outside of it")
            (copy / place).parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(copy / place))
    except Exception as error:  # of the package that reads this kind of URL
        raise DatasetError(
            f"--data {data} cannot be read ({error!r:.500}); expected the URL of a directory, and "
            f"the package with which fsspec reads it, such as s3fs"
        ) from error
    return copy


def workers_of(arguments: argparse.Namespace) -> int:
    given: int | None = arguments.workers
    return max(1, available_cores() // max(1, arguments.threads)) if given is None else given


def settings_of(arguments: argparse.Namespace) -> JoinedRunSettings:
    return JoinedRunSettings(
        max(1, workers_of(arguments)),  # only a standby may be without workers
        arguments.threads,
        arguments.restarts,
        arguments.timeout,
        arguments.rejoin_timeout,
    )


def prepare_recipe(
    offered: OfferedRecipe, directory: RunDirectory, arguments: argparse.Namespace, console: Console
) -> bool:
    """Prepare recipe and data; return whether a worker may fork: libraries may have threads."""
    offered.keep(directory, data=arguments.data)
    if offered.origin.is_code:
        what = f"the recipe {offered.name!r} of the server's host"
        confirm_code(what, directory.path, offered.file_digests, arguments.trust_recipe)
    with FetchProgress(console) as fetching:
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


def prepare_folder(
    offered: OfferedRecipe,
    folder: Path | None,
    directory: RunDirectory,
    console: Console,
    opened: ExitStack,
) -> None:
    """Prepare the images, and write the workers' files to ``directory``.

    The images stay cached until ``opened`` is closed. Raise DatasetError without that folder.
    """
    manifest, found = images_of(offered, folder)
    cache = ImageCache(
        default_cache_dir(), found, manifest.preprocessing, test_part=manifest.test_part
    )
    with CountProgress(console, "preparing images", "images prepared") as shown:
        opened.enter_context(prepare_images(cache, directory.logs, show=shown))
    directory.write(directory.images, cache.to_json())
    recipe = ImageRecipe.from_json(offered.files[RECIPE_JSON])
    own = replace(recipe, data=str(directory.images.resolve()))
    replace(offered, files={RECIPE_JSON: own.to_json().encode()}).keep(directory)
