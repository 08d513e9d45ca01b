"""``dist-net bench push-pull``: the round trip of a gradient and new weights, without the compute.

A real parameter server in a process of its own, and a real worker in this one, whose minibatches
cost nothing: what is left is push, update, and pull. It is measured in two ways: one after the
other, which is how long new weights take; and as a worker does it, which has other minibatches to
compute meanwhile and pushes several gradients together, which is what each of them costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np

from dist_net.benchmark import synthetic
from dist_net.benchmark.peers.runner import measure_peer
from dist_net.benchmark.peers.task import SAMPLES
from dist_net.cluster.child import Child, end
from dist_net.cluster.observer import Observer
from dist_net.cluster.options import RunOptions
from dist_net.cluster.run_directory import RunDirectory
from dist_net.recipe import LoadedRecipe, load_recipe
from dist_net.training.process import WorkerProcess
from dist_net.wire.memory import keep_freed_memory
from dist_net.wire.messages import Vector

ROUNDS = 5
TRANSPORTS = ("shared-memory", "tcp")
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

    def prepare(self, epoch: int, start: int, stop: int) -> None:
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


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them; medians of rounds.

    A round trip of the same bytes takes half as long again from one process to the next, ours and
    the peer's alike, so they are measured in turn.
    """
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in TRANSPORTS}
    echoes: list[dict[str, Any]] = []
    for turn in range(1, ROUNDS + 1):
        for name, of in rounds.items():
            say(f"round {turn} of {ROUNDS}: {name}")
            of.append(measure_transport(name))
        if with_peers:
            say(f"round {turn} of {ROUNDS}: zeromq_echo")
            size = rounds["tcp"][0]["bytes"]
            echoes.append({"peer": "zeromq_echo", **measure_peer("zeromq_echo", (size,)).cases[0]})
    results = [of_rounds(of) for of in rounds.values()]
    if not with_peers:
        return {"results": results, "peers": [], "ratios": {}}
    tcp, echo = results[-1], of_rounds(echoes)
    ratios = {
        "tcp_to_zeromq_echo": round(tcp["median_ms"] / echo["median_ms"], 3),
        "tcp_overlapped_to_zeromq_echo": round(tcp["overlapped_ms"] / echo["median_ms"], 3),
    }
    return {"results": results, "peers": [echo], "ratios": ratios}


def of_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The case with the medians of its rounds."""
    times = [name for name in rounds[0] if name.endswith("_ms")]
    return {
        **rounds[0],
        **{name: round(median(each[name] for each in rounds), 4) for name in times},
    }


def measure_transport(transport: str) -> dict[str, Any]:
    """``median_ms`` of what is done one after the other, and ``overlapped_ms``, the mean."""
    loaded = load_recipe(synthetic.__file__)
    # With one minibatch an epoch, and so one a lease, a worker has nothing to do meanwhile.
    alone = waits_s(loaded, transport, RunOptions(loaded.reference, batch_size=SAMPLES))
    overlapped = waits_s(loaded, transport, RunOptions(loaded.reference, batch_size=1))
    return {
        "transport": transport,
        "bytes": 4 * loaded.recipe.model.layout.size,
        "median_ms": 1e3 * median(alone),
        "overlapped_ms": 1e3 * fmean(overlapped),
    }


def waits_s(loaded: LoadedRecipe, transport: str, options: RunOptions) -> list[float]:
    """Seconds from each of ``ROUND_TRIPS`` gradients to the next, between two processes here."""
    keep_freed_memory()  # as every worker's process does
    size = loaded.recipe.model.layout.size
    with tempfile.TemporaryDirectory() as temporary:
        directory = RunDirectory.create(Path(temporary) / "run", "push-pull", datetime.now())
        options = replace(options, epochs=2 * ROUND_TRIPS, learning_rate=1e-9)
        directory.options.write_text(options.to_json())
        listen = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{temporary}/server"
        arguments = [str(directory.path), listen]
        server = Child("server", "workers.parameter_server", arguments, directory.logs)
        try:
            (address,) = server.wait_until_ready(START_TIMEOUT_S)
            stopwatch = Stopwatch()
            with WorkerProcess(
                lambda _: stopwatch,
                address,
                "stopwatch",
                loaded.digest(loaded.recipe.load_dataset()),
                size,
                shares_memory=transport != "tcp",
            ) as worker:
                stopwatch.finished = lambda: worker.stop("measured")
                worker.train()
            with Observer(address) as observer:
                observer.shut_down("measured")
        finally:
            end([server], grace_s=5.0)
    return stopwatch.times_s[WARM_UP:]
