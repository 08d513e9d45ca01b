"""The options of ``dist-net serve``."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dist_net.autodiff.kernels.thread_pool import MAX_THREADS
from dist_net.errors import SettingError
from dist_net.export.onnxruntime_engine import ENGINES, NUMPY
from dist_net.ground.command_line import add_options, add_trust_argument
from dist_net.images.decoding import MAX_PIXELS
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.found_model import MODELS
from dist_net.nets.sources.named_source import RUN_PRECISION
from dist_net.processes.cluster_options import (
    MAX_WORKERS,
    ListenOptions,
    add_cluster_arguments,
    add_invitation_arguments,
    ray_address,
    worker_count,
)
from dist_net.processes.equipment import available_cores
from dist_net.serving.gateway.client_ledger import NO_QUOTA, Quota
from dist_net.serving.pool.requests import PoolSettings
from dist_net.wire.invitation import TOKEN_LIFETIME_S
from dist_net.wire.token import POOL

MIB = 2**20


@dataclass(frozen=True)
class ServingOptions:
    """The options of a gateway. Raise SettingError for values out of range."""

    sources: tuple[str, ...]
    workers: int | None
    threads: int
    pool: PoolSettings
    queue_mib: int
    http: str
    grpc: str
    listen_workers: str
    keys: Path | None
    training_keys: Path | None
    token_file: Path | None
    tls_certificate: Path | None
    tls_key: Path | None
    weights: Path | None
    labels: Path | None
    max_pixels: int
    is_reproducible: bool
    engine: str
    trust_recipe: bool
    grace: float
    log_dir: Path | None
    quota: Quota = NO_QUOTA
    access_log: bool = False
    contact: str | None = None
    token_lifetime: float = TOKEN_LIFETIME_S
    ray: str | None = None
    teach: bool = False
    collect: bool = False
    repository: Path | None = None
    inbox: Path | None = None
    sort_into: Path | None = None
    notify: str | None = None
    notify_classes: str | None = None

    def __post_init__(self) -> None:
        workers = 1 if self.workers is None else self.workers
        in_range = 0 <= workers <= MAX_WORKERS and 1 <= self.threads <= MAX_THREADS
        if not in_range or not self.grace >= 0 or min(self.max_pixels, self.queue_mib) < 1:
            raise SettingError(
                f"--workers={self.workers}, --threads={self.threads}, --grace={self.grace:g}, "
                f"--max-pixels={self.max_pixels}, --queue-mib={self.queue_mib}: expected 0 to "
                f"{MAX_WORKERS} workers of 1 to {MAX_THREADS} threads, seconds, and at least one "
                f"pixel and one MiB"
            )
        if self.ray is not None and (self.listen_workers or workers == 0):
            raise SettingError(
                f"--cluster ray, --workers={workers}, --listen-workers={self.listen_workers!r}: "
                f"expected workers placed by Ray, and no address for other workers"
            )
        if self.sort_into is not None and self.inbox is None:
            raise SettingError(f"--sort-into {self.sort_into} without --inbox; expected both")
        if self.collect and not self.teach:
            raise SettingError("--collect without --teach; expected both, to label what is kept")
        if self.notify_classes is not None and self.notify is None:
            raise SettingError(f"--notify-classes {self.notify_classes} without --notify")
        if workers == 0 and not self.listen_workers:
            raise SettingError(
                "--workers=0 without --listen-workers leaves no worker to serve requests; start "
                "local workers, or set an address for remote workers"
            )

    @property
    def queue_bytes(self) -> int:
        return self.queue_mib * MIB

    @property
    def listen_options(self) -> ListenOptions:
        listen = (self.listen_workers,) if self.listen_workers else ()
        return ListenOptions(listen, self.keys, self.contact, self.token_lifetime, POOL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="[NAME=]MODEL",
        nargs="*",
        help=f"{MODELS}; {RUN_PRECISION}; or the address of a parameter server, to serve each "
        f"version of its training run (default: the newest run under runs/)",
    )
    add_options(
        parser,
        ("--weights", Path, "FILE", "a .weights file of Darknet"),
        ("--labels", Path, "FILE", "a text file with one class name per line"),
        ("--training-keys", Path, "DIR", "keys for the parameter server"),
        ("--repository", Path, "DIR", "also serve the newest version of each DIR/NAME/VERSION/"),
    )
    text = "learn from the labels that people set for the images of a run on a folder"
    parser.add_argument("--teach", action="store_true", help=text)
    text = "with --teach: keep the images that clients send, to be labelled; see docs/photos.md"
    parser.add_argument("--collect", action="store_true", help=text)
    answers = "classify each image that arrives in a folder; the answers are in its answers.jsonl"
    links = "link each image of the inbox in a folder of its class, or of unknown ones"
    add_options(
        parser,
        ("--inbox", Path, "FOLDER", answers),
        ("--sort-into", Path, "FOLDER", links),
        ("--notify", str, "URL", "post the answer to each image to this URL, as JSON"),
        ("--notify-classes", str, "A,B", "only answers of these classes, or unknown"),
    )
    add_trust_argument(parser)
    _add_workers(parser.add_argument_group("workers"))
    _add_requests(parser.add_argument_group("requests"))
    _add_addresses(parser.add_argument_group("addresses and keys"))


def _add_workers(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    text = "number of processes (default: the cores); with --cluster ray also auto: as many as fit"
    option("--workers", type=worker_count, default=available_cores(), metavar="N", help=text)
    logs = (
        "directory for the logs of workers and model readers of the last 10 pools (default: the "
        "user's log directory)"
    )
    add_options(
        group,
        ("--threads", int, "N", "threads per worker", 1),
        ("--grace", float, "SECONDS", "time to answer admitted requests after a signal", 30.0),
        ("--log-dir", Path, "DIR", logs),
    )
    text = (
        "answers do not depend on the batch, bit for bit (default); up to a fifth slower on "
        "processors without AVX-512"
    )
    switch = argparse.BooleanOptionalAction
    option("--reproducible", dest="is_reproducible", action=switch, default=True, help=text)
    text = "program that computes the models (default: numpy); .onnx files need onnxruntime"
    option("--engine", choices=ENGINES, default=NUMPY, help=text)
    add_cluster_arguments(group)


def _add_requests(group: argparse._ArgumentGroup) -> None:
    memory = "memory for requests and answers until they are read"
    pixels = "refuse larger images; decoding takes up to 16 bytes per pixel"
    add_options(
        group,
        ("--max-batch-size", int, "N", "rows per batch", 8),
        ("--queue-limit", int, "N", "queued requests per model and client", 1024),
        ("--queue-mib", int, "MIB", memory, 256),
        ("--max-pixels", int, "N", pixels, MAX_PIXELS),
        ("--timeout", float, "SECONDS", "per request", 10.0),
        ("--rate", float, "N", "requests per second of a client; a token may have its own"),
        ("--inflight", int, "N", "unanswered requests of a client; a token may have its own"),
    )
    text = "log every request over HTTP and gRPC"
    group.add_argument("--access-log", action="store_true", help=text)


def _add_addresses(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    text = "address of the HTTP server (default: %(default)s)"
    option("--http", default="127.0.0.1:8000", metavar="HOST:PORT", help=text)
    text = "also serve over gRPC, with HTTP's tokens, certificate and limits (the extra grpc)"
    option("--grpc", default="", metavar="HOST:PORT", help=text)
    text = "listen for workers on other hosts, and print the command to run there"
    option("--listen-workers", default="", metavar="ADDRESS", help=text)
    add_invitation_arguments(group)
    keys = "CURVE keys of this server, for workers on other hosts"
    tokens = (
        "tokens of clients, one per line: 'client TOKEN' or 'operator TOKEN'; read again "
        "after a change; required to listen beyond this host, with or without TLS"
    )
    add_options(
        group,
        ("--keys", Path, "DIR", keys),
        ("--token-file", Path, "FILE", tokens),
        ("--tls-certificate", Path, "FILE", "PEM, with --tls-key"),
        ("--tls-key", Path, "FILE", "PEM, with --tls-certificate"),
    )


def options_from(arguments: argparse.Namespace) -> ServingOptions:
    """Return the validated options. The default MODEL is the newest run."""
    ray = ray_address(arguments, arguments.workers)
    sources = tuple(arguments.models)
    if not sources and arguments.repository is None:
        sources = (str(RunDirectory.newest().path),)
    pool = PoolSettings(
        max_batch_size=arguments.max_batch_size,
        queue_requests=arguments.queue_limit,
        default_timeout_s=arguments.timeout,
    )
    same = {each.name for each in fields(ServingOptions)} & vars(arguments).keys()
    rest: dict[str, Any] = {name: getattr(arguments, name) for name in same}
    given = {name: getattr(arguments, name) for name in Quota._fields}
    if any(value is not None and value <= 0 for value in given.values()):
        raise SettingError(
            f"--rate={arguments.rate}, --inflight={arguments.inflight}: expected more than 0"
        )
    quota = Quota(**{name: value for name, value in given.items() if value is not None})
    return ServingOptions(sources=sources, pool=pool, quota=quota, ray=ray, **rest)
