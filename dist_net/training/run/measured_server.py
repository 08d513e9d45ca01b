"""A parameter server that measures its threads' time; see ``dist_net.training.run.measuring``.

    python -m dist_net.training.run.measured_server DIRECTORY LISTEN_ADDRESS --parameters N
        --optimizer NAME --lease-minibatches N [--keys DIR] [--parent PROCESS_ID]

It is the parameter server of a run, with one vector as the model's parameters and without samples.
At each SIGUSR1 it records the CPU time used so far; at SIGTERM it writes the records to
``used.json`` in the directory.
"""

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np

from dist_net.optim import optimizer_named
from dist_net.processes.entry import StartReports, entry_point, stop_on_signals
from dist_net.training.server.loop import ServerLoop, opened_journal, opened_run
from dist_net.training.server.settings import RunSettings
from dist_net.wire.local_channel import LocalServerSocket
from dist_net.wire.security import load_server_keys

SAMPLES = 10**12
"""More than can be computed during a measurement."""

NO_CHECKPOINT_S = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)
    parser.add_argument("listen")
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--optimizer", required=True)
    parser.add_argument("--lease-minibatches", type=int, required=True)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--parent", type=int)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM; return the exit code."""
    reports = StartReports("the weights")
    directory: Path = arguments.directory
    settings = RunSettings(
        recipe="",
        recipe_digest="",
        layout=(("weights", (arguments.parameters,)),),
        samples=SAMPLES,
        epochs=1,
        batch_size=1,
        optimizer=optimizer_named(arguments.optimizer),
        lease_minibatches=arguments.lease_minibatches,
    )
    keys = None if arguments.keys is None else load_server_keys(arguments.keys)
    used: list[tuple[float, float, int]] = []
    with (
        opened_run(settings, lambda: np.zeros(arguments.parameters, np.float32), None) as (
            state,
            segment,
        ),
        opened_journal(directory / "journal", state) as journal,
        LocalServerSocket(
            [arguments.listen],
            keys,
            settings.gradient_bytes,
            max_arrays=settings.pipeline.grouped,
        ) as socket,
    ):
        loop = ServerLoop(
            state, socket, directory / "checkpoint", NO_CHECKPOINT_S, segment, journal
        )
        stop_on_signals(loop.stop, arguments.parent)
        signal.signal(
            signal.SIGUSR1,
            lambda *_: used.append((time.thread_time(), time.process_time(), state.store.version)),
        )
        contact = shlex.join(socket.contact_addresses)
        loop.serve(ready=lambda: reports.ready(contact))
    (directory / "used.json").write_text(json.dumps(used))
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
