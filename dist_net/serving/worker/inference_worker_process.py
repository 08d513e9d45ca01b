"""The process of an inference worker.

    python -m dist_net.serving.worker.inference_worker_process [TOKEN | --connect ADDRESS] ...

Prints ``READY`` on stdout when it joins, ``FAILED REASON`` if it fails; logs to stderr.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from dist_net.data import default_cache_dir
from dist_net.errors import INTERRUPTED
from dist_net.ground.clock import SystemClock
from dist_net.ground.command_line import add_options, add_trust_argument
from dist_net.ground.release import release
from dist_net.images.decoding import MAX_PIXELS
from dist_net.processes.cluster_options import add_server_arguments, server_given
from dist_net.processes.entry import FAILED, READY, entry_point, limit_memory, stop_on_signals
from dist_net.serving.worker.loaded_models import LoadedModels, load_network
from dist_net.serving.worker.loop import InferenceWorker
from dist_net.serving.worker.served_network import WorkerSettings
from dist_net.wire.heartbeat import HeartbeatSender
from dist_net.wire.serving_messages import JoinPool, PoolWelcome
from dist_net.wire.token import POOL
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger("dist_net.serving.worker.loop")

SWITCH_INTERVAL_S = 0.0005  # the loop's wait for the interpreter while a thread loads (5 ms)
KEPT_BYTES = 8 << 20  # enough for a batch's rows; memory of a huge image's pixels is returned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser, "gateway", "'dist-net serve --listen-workers ADDRESS'")
    own_name = f"{socket.gethostname()}:{os.getpid()}"
    parser.add_argument("--name", default=own_name, help="for people")
    add_options(
        parser,
        ("--threads", int, "N", "how many compute", 1),
        ("--max-batch-size", int, "N", "as the gateway's", 8),
        ("--max-pixels", int, "N", "refuse larger images", MAX_PIXELS),
    )
    switch, text = argparse.BooleanOptionalAction, "as the gateway's (default)"
    parser.add_argument("--reproducible", action=switch, default=True, help=text)
    cache = default_cache_dir() / "served"
    text = "for models that the gateway sends (default: in the cache)"
    parser.add_argument("--directory", type=Path, default=cache, metavar="DIR", help=text)
    add_trust_argument(parser)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # leave when it is gone
    parser.add_argument("--credential", default="", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the gateway stops this worker; return the exit code."""
    settings = WorkerSettings(
        arguments.directory,
        arguments.threads,
        arguments.max_batch_size,
        arguments.reproducible,
        arguments.max_pixels,
        arguments.trust_recipe,
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logging.getLogger("dist_net").setLevel(logging.INFO)
    (address, keys), clock = server_given(arguments, POOL), SystemClock()

    def start_heartbeats(welcome: PoolWelcome) -> HeartbeatSender:
        interval_s = welcome.heartbeat_interval_s
        sender = HeartbeatSender(address, keys, welcome.worker_id, interval_s, clock)
        sender.start()
        return sender

    load = partial(load_network, address, keys, settings)
    models = LoadedModels(load, limit_memory=limit_memory)
    own = socket.gethostname(), os.getpid(), release()
    join = JoinPool(arguments.name, *own, arguments.credential)
    is_child = arguments.parent is not None
    with (
        ClientSocket(address, keys) as connection,
        closing(
            InferenceWorker(connection, models, start_heartbeats, join, is_child, clock)
        ) as worker,
    ):
        stop_on_signals(worker.stop, arguments.parent)
        print(READY, flush=True)
        try:
            reason = worker.serve()
        except MemoryError as error:  # it would keep the memory: the next process begins without
            print(f"{FAILED} {error}; its batch needed more memory than its models may", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    logger.info("done reason=%s", reason)
    return INTERRUPTED if worker.was_stopped else 0


def main(words: Sequence[str] | None = None) -> int:
    return entry_point(add_arguments, run, words, KEPT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
