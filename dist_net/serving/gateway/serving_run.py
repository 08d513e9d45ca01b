"""The process of the inference pool's gateway: sockets, children and HTTP, until a signal.

    python -m dist_net.serving.gateway.serving_run [[NAME=]MODEL...] [--workers N] ...

Prints ``READY http=URL`` once every model is ready; children log to files.
"""

import argparse
import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dist_net.errors import INTERRUPTED, AddressError, ModelLoadError, SettingError
from dist_net.ground.clock import SystemClock
from dist_net.ground.command_line import importing, joining_command
from dist_net.ground.printable import printable
from dist_net.ground.release import release
from dist_net.nets.run_contents import confirm_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.nets.sources.found_model import RunFiles
from dist_net.nets.sources.named_source import ModelSource, NamedSource, parse_pool_sources
from dist_net.processes.entry import READY, entry_point
from dist_net.processes.launcher import ProcessSpec, Word
from dist_net.processes.own_directory import LOGS, open_logs, temporary_directory
from dist_net.processes.ray_cluster import RayCluster
from dist_net.serving.gateway.client_ledger import ANSWER_COPIES, ClientLedger
from dist_net.serving.gateway.collector import Collector
from dist_net.serving.gateway.drift import DriftMonitor
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.gateway.inbox import Inbox
from dist_net.serving.gateway.notifier import Notifier
from dist_net.serving.gateway.pool_processes import PoolProcesses, PoolSources
from dist_net.serving.gateway.repository import ModelRepository
from dist_net.serving.gateway.serving_options import ServingOptions, add_arguments, options_from
from dist_net.serving.http.settings import HttpSettings, TokenFile
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import Status
from dist_net.wire.fields import MAX_HEADER_BYTES
from dist_net.wire.security import (
    CLIENT,
    load_peer_keys,
    load_server_keys,
    make_keys,
    write_peer_keys,
)
from dist_net.wire.transport import ServerSocket

if TYPE_CHECKING:
    from dist_net.serving.grpc.grpc_server import GrpcServer
    from dist_net.serving.http.server import HttpServer

logger = logging.getLogger("dist_net.serving.gateway.serving_run")

TEACHER = "dist_net.photos.teaching.teacher"  # by name: photos may import serving
POLL_S = 0.02
WORKER_ID_BITS = 63
RETIRE_S = 2.0  # for children to leave before they are killed
MIN_BATCH_BYTES = 64 << 20  # that a worker may send, as the size of some outputs is unknown
FULL_COLLECTION = 200  # of the garbage collector, after this many collections of young objects


class StopSignals:
    """SIGTERM, as from a service manager, or SIGINT. Create it on the running event loop.

    A second signal sets ``is_urgent``: do not wait. ``exit_code``: after an orderly shutdown.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.exit_code = 0
        self.is_urgent = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._handle, 0)
        loop.add_signal_handler(signal.SIGINT, self._handle, INTERRUPTED)

    async def requested_or(self, *tasks: asyncio.Task[Any]) -> None:
        """Wait for a signal, or for the end of a task; raise what ended it."""
        requested = asyncio.create_task(self.requested.wait())
        await asyncio.wait({requested, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()
        for task in tasks:
            if task.done():
                task.result()

    def _handle(self, exit_code: int) -> None:
        if self.requested.is_set():
            self.is_urgent.set()
        self.exit_code = exit_code
        self.requested.set()


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal arrives; return the exit code."""
    options = options_from(arguments)
    keys = load_peer_keys(options.training_keys, CLIENT) if options.training_keys else None
    sources = []
    for named in parse_pool_sources(options.sources, options.weights, options.labels):
        confirm_recipe(named.source, options.trust_recipe)
        source = named.open(lambda _: None, keys)
        if isinstance(source, FollowedRun):  # a join token is valid once
            named = named._replace(source=source.address)
        sources.append((named, source))
    loop_factory = None
    with suppress(ImportError):
        import uvloop  # which halves the time of a turn

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(serve(options, sources))


class PoolPlaces(NamedTuple):
    """Where a pool listens for workers, and where its files are."""

    directory: Path
    logs: Path
    ray: RayCluster | None
    workers: ServerSocket
    worker_keys: Path | None


async def serve(options: ServingOptions, sources: Sequence[tuple[NamedSource, ModelSource]]) -> int:
    """Serve until a signal, answer admitted requests, return the exit code. Raise DistNetError."""
    stop = StopSignals()
    with ExitStack() as opened:
        places = _open(options, opened)
        clock = SystemClock()
        address, directory = places.workers.contact_addresses[0], str(places.directory)
        count = 0 if options.ray else options.workers or 0
        where = "--connect", address, "--directory", directory
        specs = [_worker(options, where, f"worker-{i}") for i in range(count)]
        read = _pool_sources(options, sources, places.directory)
        words, processes = read.words, PoolProcesses(specs, read, places.logs)
        worker_ids = iter(partial(secrets.randbits, WORKER_ID_BITS), None)
        names = [named.name for named, _ in sources]
        pool = Pool(options.pool, names, processes, worker_ids, clock.now(), release())
        if (ray := places.ray) is not None:
            ray.serve_at(*places.workers.contact_addresses)
            processes.add_ray(ray, partial(_worker, options, ray.worker_options), options.workers)
        taught = _taught(sources) if options.teach else {}
        specs = [
            ProcessSpec(f"teacher-{n}", TEACHER, (str(run.path),)) for n, run in taught.items()
        ]
        processes.add_teachers(places.logs, specs)
        ledger = ClientLedger(options.queue_bytes, options.quota)
        gateway = Gateway(pool, places.workers, processes, clock, ledger)
        collections = {name: run.collection for name, run in taught.items()}
        _add_observers(options, gateway, _image_runs(sources), collections, opened)
        with _naming("--http"):
            http = _http(options, gateway, ledger, collections)
        with _naming("--grpc"):
            grpc = _grpc(options, gateway, http) if options.grpc else None
        _print_joining(options, places)
        try:
            tasks = [asyncio.create_task(_reload_taught(gateway, taught))]
            if options.inbox is not None:
                inbox = Inbox(gateway, options.inbox, options.sort_into)
                tasks.append(asyncio.create_task(inbox.watch()))
            if options.repository is not None:

                def set_source(named: NamedSource) -> None:
                    words[named.name] = _reader_words(options, places.directory, named.text)

                repository = ModelRepository(gateway, options.repository, set_source)
                tasks.append(asyncio.create_task(repository.watch()))
            is_drained = await _run(options, gateway, (http, grpc), processes, stop)
            for task in tasks:
                task.cancel()
        except ModelLoadError as error:
            error.args = (f"{error} (logs: {places.logs})",)
            raise
    if not is_drained:
        logger.warning("not_drained grace_s=%g", options.grace)
    return stop.exit_code if is_drained else 1


def _add_observers(
    options: ServingOptions,
    gateway: Gateway,
    runs: Mapping[str, RunDirectory],
    collections: Mapping[str, Path],
    opened: ExitStack,
) -> None:
    """Add what learns of each answer to an image; it lasts as long as ``opened``."""
    gateway.drift += [DriftMonitor(name, run) for name, run in runs.items()]
    gateway.observers += gateway.drift
    if options.notify is not None:
        notifier = opened.enter_context(Notifier(options.notify, options.notify_classes))
        gateway.observers.append(notifier.answered)
        for each in gateway.drift:
            each.notify = notifier.post
    if options.collect:
        gateway.observers.append(opened.enter_context(closing(Collector(collections))))


def _taught(sources: Sequence[tuple[NamedSource, ModelSource]]) -> dict[str, RunDirectory]:
    """Return the runs on folders of images; raise SettingError without one that is writable."""
    if not (taught := _image_runs(sources)):
        raise SettingError(
            f"--teach with {', '.join(named.text for named, _ in sources)}: expected a run on a "
            f"folder of images, which learns from labels"
        )
    for run in taught.values():
        if not os.access(run.path, os.W_OK):
            raise SettingError(
                f"--teach: {run.path} is read-only; expected a writable run directory"
            )
    return taught


def _image_runs(sources: Sequence[tuple[NamedSource, ModelSource]]) -> dict[str, RunDirectory]:
    paths = {named.name: each.path for named, each in sources if isinstance(each, RunFiles)}
    runs = {name: RunDirectory(path) for name, path in paths.items()}
    return {name: run for name, run in runs.items() if run.folder.exists()}


async def _reload_taught(gateway: Gateway, runs: Mapping[str, RunDirectory]) -> None:
    """Reload a model whenever its teacher, or another training, has replaced its file."""
    written = {name: _written_ns(run.best) for name, run in runs.items()}
    while runs:
        await asyncio.sleep(POLL_S)
        for name, run in runs.items():
            before, written[name] = written[name], _written_ns(run.best)
            if written[name] not in (before, 0):
                result = await gateway.reload(name)
                if result.status != Status.OK:
                    logger.warning("not_reloaded model=%s reason=%s", name, result.reason)


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _open(options: ServingOptions, opened: ExitStack) -> PoolPlaces:
    """Create the pool's directories, keys and sockets, which last as long as ``opened``."""
    directory = opened.enter_context(temporary_directory())
    logs = open_logs(opened, LOGS, directory, options.log_dir)
    ray = opened.enter_context(RayCluster(options.ray, logs)) if options.ray else None
    worker_keys = options.keys if ray is None else ray.key_directory
    if options.listen_options.needs_keys:  # they last as long as the pool
        make_keys(worker_keys := directory / "keys")
    with _naming("--listen-workers"):
        # Workers of this host connect to a private path.
        listen = options.listen_options.listen if ray is None else ray.listen
        admitting = load_server_keys(worker_keys) if worker_keys else None
        # All answers together: the ledger admits them with their copies.
        answer_bytes = max(MIN_BATCH_BYTES, options.queue_bytes // ANSWER_COPIES)
        limits = answer_bytes, answer_bytes + 2 * MAX_HEADER_BYTES
        socket = ServerSocket([f"ipc://{directory}/pool", *listen], admitting, *limits)
        workers = opened.enter_context(socket)
    return PoolPlaces(directory, logs, ray, workers, worker_keys)


def _print_joining(options: ServingOptions, places: PoolPlaces) -> None:
    """Print how workers join, before READY, which may wait for them."""
    listening, keys = options.listen_options, places.worker_keys
    addresses = places.workers.contact_addresses[1:]
    for address in addresses if places.ray is None else ():
        joining = joining_command("inference-worker", address=address, keys=keys)
        print(f"workers may join: {joining}", file=sys.stderr, flush=True)
    if listening.listen:
        print("\n".join(listening.lines(keys, addresses, keys)), file=sys.stderr, flush=True)


async def _run(
    options: ServingOptions,
    gateway: Gateway,
    doors: tuple["HttpServer", "GrpcServer | None"],
    processes: PoolProcesses,
    stop: StopSignals,
) -> bool:
    """Start the processes, serve, and end them; return whether all requests were answered.

    Raise ModelLoadError if a model cannot become ready.
    """
    gateway.start(asyncio.get_running_loop())
    http, grpc = doors
    serving = asyncio.create_task(http.serve())
    calls = [asyncio.create_task(grpc.serve())] if grpc else []
    try:
        supervising = processes.start(gateway.child_ended, gateway.pool.is_member, gateway.prepared)
        while not (gateway.is_ready or stop.requested.is_set()):
            processes.require_startable()
            failures = gateway.pool.failures()
            if failures and options.workers != 0:  # workers on other hosts may still join
                raise failures[0]
            await asyncio.sleep(POLL_S)
        processes.is_begun = True
        gc.freeze()  # these objects stay: garbage collections skip them
        # With a thousand requests in flight a full one holds the loop for 30 ms, and finds little.
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION)
        if not stop.requested.is_set():
            newest = [each.description for each in gateway.models().values() if each.description]
            names = ", ".join(f"{each.name} (version {each.version})" for each in newest)
            text = printable(f"serving {names}; the page is {http.url}/")
            print(text, file=sys.stderr, flush=True)
            also = f" grpc={grpc.address}" if grpc else ""
            print(f"{READY} http={http.url}{also}", flush=True)
        await stop.requested_or(serving, supervising, *calls)
        logger.info("draining")
        if grpc:
            calls.append(asyncio.create_task(grpc.stop(options.grace)))
        await http.announce_stop(stop.is_urgent)
        return await gateway.drain(options.grace, stop.is_urgent)
    finally:
        gateway.give_up("the gateway is being stopped")
        stop.requested.set()
        http.stop()
        if grpc:
            await grpc.stop(0.0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)  # cancelled
        await serving
        await asyncio.sleep(0)  # for the last answers to clients
        gateway.retire_workers()
        gateway.close()
        processes.close(RETIRE_S)


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Name the option of an address in its errors."""
    try:
        yield
    except AddressError as error:
        raise AddressError(f"{option}: {error}") from error


def _pool_sources(
    options: ServingOptions,
    sources: Sequence[tuple[NamedSource, ModelSource]],
    directory: Path,
) -> PoolSources:
    """Return how processes read the models; a training run's, with the keys that were opened."""
    words: dict[str, Sequence[str]] = {}
    followed = set()
    for named, source in sources:
        own: list[str] = []
        if isinstance(source, FollowedRun):
            followed.add(named.name)
            if source.keys is not None:
                keys = directory / f"{named.name}.keys"
                write_peer_keys(keys, source.keys, CLIENT)
                own = ["--training-keys", str(keys)]
        words[named.name] = _reader_words(options, directory, named.text, own)
    return PoolSources(words, followed, directory)


def _reader_words(
    options: ServingOptions, directory: Path, source: str, own: Sequence[str] = ()
) -> list[str]:
    words = ["--directory", str(directory), "--engine", options.engine, *own]
    return [*words, *(["--trust-recipe"] if options.trust_recipe else []), "--", source]


def _worker(options: ServingOptions, where: Sequence[Word], name: str) -> ProcessSpec:
    """Return a worker with the arguments ``where``: of this host, or of one of Ray's nodes."""
    words = [*where, "--name", name, "--threads", str(options.threads)]
    words += ["--max-batch-size", str(options.pool.max_batch_size)]
    words += ["--max-pixels", str(options.max_pixels)]
    words += [] if options.is_reproducible else ["--no-reproducible"]
    words += ["--trust-recipe"] if options.trust_recipe else []
    module = "dist_net.serving.worker.inference_worker_process"
    return ProcessSpec(name, module, tuple(words), cores=options.threads)


def _http(
    options: ServingOptions,
    gateway: Gateway,
    ledger: ClientLedger,
    collections: Mapping[str, Path],
) -> "HttpServer":
    with importing("web", "dist-net serve"):
        from dist_net.serving.http.application import application
        from dist_net.serving.http.server import HttpServer
    settings = HttpSettings(
        address=options.http,
        tokens=TokenFile(options.token_file) if options.token_file else None,
        certificate=options.tls_certificate,
        private_key=options.tls_key,
        queue_bytes=options.queue_bytes,
        access_log=options.access_log,
        collects=options.collect,
    )
    return HttpServer(application(gateway, settings, ledger=ledger, collections=collections))


def _grpc(options: ServingOptions, gateway: Gateway, http: "HttpServer") -> "GrpcServer":
    with importing("grpc", "dist-net serve --grpc"):
        from dist_net.serving.grpc.grpc_server import GrpcServer
    settings = replace(http.settings, address=options.grpc)
    return GrpcServer(gateway, settings, http.refusals, http.ledger)


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
