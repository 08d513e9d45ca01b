"""Round trips of a gradient and new weights between a real server and a real worker.

``python -m benchmarks.round_trips TRANSPORT LEASE_MINIBATCHES``, and the order ``waits``.

The server is a process of its own, and the worker this one, whose minibatches cost nothing: what
is left is push, update, and pull. This process keeps to what every worker's does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np

from benchmarks import synthetic
from benchmarks.peers.orders import obey
from dist_net.nets.observer import Observer
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.child import Child, end
from dist_net.processes.entry import entry_point
from dist_net.training.run.run_options import RunOptions
from dist_net.training.worker.loop import WorkerLoop
from dist_net.vector import Vector

TCP = "tcp"
ROUND_TRIPS = 4000
WARM_UP = 400
SMALL = np.float32(1e-6)
START_TIMEOUT_S = 30.0


class Stopwatch:
    """A step that computes nothing; notes how long it is until the next one."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._pushed_s: float | None = None
        self.finished: Callable[[], None] = lambda: None

    def gather(self, epoch: int, start: int, stop: int) -> None:
        """Nothing to gather."""

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Notes the time since the last one; reads the weights and writes a gradient, untimed."""
        if self._pushed_s is not None:
            self.times_s.append(perf_counter() - self._pushed_s)
        if len(self.times_s) == ROUND_TRIPS:
            self.finished()
        np.multiply(weights, SMALL, out=gradient)
        self._pushed_s = perf_counter()
        return 0.0, 0

    def unbind(self) -> None:
        """Nothing is bound."""


def waits_s(transport: str, lease_minibatches: int) -> list[float]:
    """Seconds from each of ``ROUND_TRIPS`` gradients to the next.

    Of a lease of one minibatch a worker has nothing to do until it has new weights.
    """
    loaded = load_recipe(synthetic.__file__)
    options = RunOptions(
        loaded.reference,
        epochs=2 * ROUND_TRIPS,
        batch_size=1,
        learning_rate=1e-9,
        lease_minibatches=lease_minibatches,
    )
    size = loaded.recipe.model.layout.size
    with tempfile.TemporaryDirectory() as temporary:
        directory = RunDirectory.create(Path(temporary) / "run", "push-pull", datetime.now())
        directory.begin(options.to_json(), loaded.files)
        listen = "tcp://127.0.0.1:0" if transport == TCP else f"ipc://{temporary}/server"
        arguments = [str(directory.path), listen, "--parent", str(os.getpid()), "--trust-recipe"]
        server = Child(
            "server", "dist_net.training.run.parameter_server_process", arguments, directory.logs
        )
        try:
            (address,) = server.wait_until_ready(START_TIMEOUT_S)
            stopwatch = Stopwatch()
            with WorkerLoop(
                lambda _: stopwatch,
                address,
                "stopwatch",
                loaded.digest(loaded.recipe.load_dataset()),
                size,
                shares_memory=transport != TCP,
            ) as worker:
                stopwatch.finished = lambda: worker.stop("measured")
                worker.train()
            with Observer(address) as observer:
                observer.shut_down("measured")
        finally:
            end([server], grace_s=5.0)
    return stopwatch.times_s[WARM_UP:]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("transport")
    parser.add_argument("lease_minibatches", type=int)


def run(arguments: Namespace) -> int:
    """Measures when it is told to."""

    def waits() -> dict[str, float]:
        times_s = waits_s(arguments.transport, arguments.lease_minibatches)
        return {"median_ms": 1e3 * median(times_s), "mean_ms": 1e3 * fmean(times_s)}

    obey({"waits": waits})
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
