"""``dist-net join``: add this host's workers to a run of another host, by a token or by keys."""

import argparse
import shutil
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath

from rich.console import Console

from dist_net.cli.hosted_run import images_of, prepare_recipe, standby_of, train_to_the_end
from dist_net.cli.parser import add_json_argument, print_json
from dist_net.data import default_cache_dir
from dist_net.data.prepared_images import ImageCache
from dist_net.errors import BadInputError, DatasetError, DistNetError
from dist_net.ground.command_line import (
    add_options,
    add_trust_argument,
    count_from,
    count_or_auto,
    importing,
)
from dist_net.ground.printable import counted
from dist_net.nets.observer import Following
from dist_net.nets.offered_recipe import OfferedRecipe
from dist_net.nets.recipe_origins import ImagesOrigin
from dist_net.nets.recipes.image_recipe import RECIPE_JSON, ImageRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_preparation import prepare_images
from dist_net.processes.cluster_options import (
    MAX_WORKERS,
    ListenOptions,
    add_server_arguments,
    server_given,
)
from dist_net.processes.equipment import available_cores, bits_in
from dist_net.processes.own_directory import announce, open_logs, temporary_directory
from dist_net.processes.supervisor import RESTARTS
from dist_net.processes.terminal import CountProgress, plain_console
from dist_net.processes.token_arguments import token_given
from dist_net.training.run.joined_run import JoinedRun, JoinedRunSettings, offered_by
from dist_net.training.run.local_run import LocalRunSettings, RunHost
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.training.run.training_worker_process import add_worker_arguments
from dist_net.wire.security import STANDBY, load_peer_keys, write_peer_keys
from dist_net.wire.standbys import standbys_in
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
    workers = "worker processes (default: cores / --threads)"
    directory = "of a standby: the copy of the run (default: in the cache)"
    listen = "of a standby: where it listens once it serves the run (default: any free port)"
    add_options(
        parser,
        ("--workers", count_or_auto(0, MAX_WORKERS), "N", workers),
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
    token = None if arguments.connect else token_given(arguments, TRAINING, STANDBY_OF_RUN)
    if token is not None and token.kind == STANDBY_OF_RUN:
        return _stand_by(arguments, join_by_token(token, STANDBY, arguments.timeout))
    if token is not None:
        kept = default_cache_dir() / "joined" / token.identity
        run = _join(token, kept, arguments.timeout)
    else:
        run = Following(server_given(arguments, TRAINING))
    server = run.server
    with ExitStack() as opened:
        temporary = opened.enter_context(temporary_directory())
        directory = RunDirectory(temporary / "run")
        directory.make()
        if server.keys is not None:
            write_peer_keys(directory.keys, server.keys)
            announce(temporary, [server.address], directory.keys)
        arguments.data = local_data(arguments.data, opened)
        offered = offered_by(server, arguments.timeout)
        if isinstance(offered.origin, ImagesOrigin):
            prepare_folder(offered, arguments.data, directory, console, opened)
            may_fork = True
        else:
            may_fork = prepare_recipe(offered, directory, arguments)
        workers = max(1, workers_of(arguments))  # only a standby may be without
        timeouts = arguments.timeout, arguments.rejoin_timeout
        own = workers, arguments.threads, arguments.restarts, *timeouts
        settings = JoinedRunSettings(*own, may_fork, bits_in(offered.digest))
        logs = open_logs(opened, "join-", directory.logs)
        display = opened.enter_context(TrainingProgress(console))
        console.print(f"{offered.name}: joining {server.address} with {counted(workers, 'worker')}")
        try:
            JoinedRun(run, directory, logs, settings, display).run()
        except BaseException:
            if token is not None and run.places.text:  # a standby may continue the run
                with suppress(OSError):
                    shutil.copytree(directory.keys, kept, dirs_exist_ok=True)
                    (kept / "places").write_text(run.places.text)
            raise
        if token is not None:
            shutil.rmtree(kept, ignore_errors=True)
    plain_console(stderr=False).print(f"{offered.name}: the run is done")
    if arguments.json:
        print_json({"recipe": offered.name, "server": server.address})
    return 0


def _join(token: JoinToken, kept: Path, timeout_s: float) -> Following:
    """Join by a token, or where its run continues, if this host joined before, and has ``kept``."""
    try:
        return Following(join_by_token(token, timeout_s=timeout_s))
    except DistNetError:
        with suppress(DistNetError, OSError):
            run = Following(ServerAccess(token.addresses[0], load_peer_keys(kept)))
            run.places.learn(standbys_in((kept / "places").read_text()))
            run.places.turn(now=0.0)
            with run.observed(timeout_s):
                return run
        raise


def _stand_by(arguments: argparse.Namespace, server: ServerAccess) -> int:
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
    host = RunHost(directory, local, TrainingProgress(plain_console()))
    with ExitStack() as opened:
        arguments.data = local_data(arguments.data, opened)
        try:
            train, host = standby_of(server, offered, host, arguments)
            return train_to_the_end(train, host, arguments)
        except BadInputError:
            if not directory.has_begun:
                directory.discard()
            raise


def local_data(data: str | None, opened: ExitStack) -> Path | None:
    """Return the path of the data, or of a URL's copy, which exists until ``opened`` is closed.

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
    return max(1, available_cores() // arguments.threads) if given is None else given


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
