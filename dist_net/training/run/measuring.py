"""Measure the costs of a cluster on this host: a worker's step, and a push with its reply.

Server and worker run in a process each, as in a run. Their threads' CPU time is measured, which
depends little on other processes of the machine. The server's process is also in this module:

    python -m dist_net.training.run.measuring DIRECTORY LISTEN_ADDRESS --parameters N
        --optimizer NAME --lease-minibatches N [--keys DIR] [--parent PROCESS_ID]

It trains one vector without samples. At each SIGUSR1 it records the CPU time used so far; at
SIGTERM it writes the records to ``used.json`` in the directory.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from dist_net.data import Dataset
from dist_net.errors import ProcessFailedError, SettingError
from dist_net.nets.recipes.recipe import LoadedRecipe
from dist_net.optim import optimizer_named
from dist_net.processes.child import Child, end
from dist_net.processes.cores import available_cores
from dist_net.processes.entry import (
    StartReports,
    entry_point,
    keep_freed_memory,
    stop_on_signals,
    use_threads,
)
from dist_net.processes.own_directory import temporary_directory
from dist_net.training.planner.costs import ClusterCosts, ExchangeCost, TransportCosts
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.loop import opened_server
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.loop import WorkerLoop
from dist_net.training.worker.step import TrainingStep
from dist_net.vector import Vector
from dist_net.wire.messages import PIPELINE
from dist_net.wire.security import (
    WORKER,
    add_keys,
    create_keys,
    load_peer_keys,
    load_server_keys,
)

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0
ROUNDS = 3
EXCHANGE_SECONDS = 0.4
MIN_EXCHANGES = 60
WARM_UP = 30
LEASES = {1: 1, PIPELINE.grouped: 21 * PIPELINE.grouped}
"""Minibatches of a lease, by the number of gradients that a push then contains."""

SAMPLES = 10**12
"""More than can be computed during a measurement."""

NO_CHECKPOINT_S = 1e9


def measure_step(loaded: LoadedRecipe, dataset: Dataset, batch_size: int, threads: int) -> float:
    """Return the median seconds of a worker with ``threads`` for a minibatch.

    A server updates the weights on another core during the measurement: reading them takes longer
    than from the cache of the worker's core. Raise SettingError for more samples than the dataset
    has, or more threads than cores; ProcessFailedError.
    """
    samples, cores = len(dataset.train_targets), available_cores()
    if batch_size > samples or threads > cores:
        raise SettingError(
            f"batch_size={batch_size}, threads={threads}: expected at most the {samples} samples "
            f"of the dataset, and the {cores} cores of this host"
        )
    use_threads(threads)
    recipe = loaded.recipe
    step = RecipeStep(TrainingStep(recipe.model, dataset, 0, threads), batch_size, samples)
    optimizer = type(recipe.optimizer).__name__.lower()
    with temporary_directory() as directory:
        measure_exchange(
            "shared memory", recipe.model.layout.size, PIPELINE.grouped, optimizer, directory, step
        )
    use_threads(1)
    return median(step.times_s[WARM_UP:])


class MeasuredExchange(NamedTuple):
    """Seconds of a push with its reply: the CPU time of each thread, and the round trip."""

    server_s: float
    server_transport_s: float
    worker_s: float
    worker_transport_s: float
    round_trip_s: float


class RecipeStep:
    """A step of a recipe, with its times; it ignores which samples the server leases."""

    def __init__(self, step: TrainingStep, batch_size: int, samples: int) -> None:
        self._step = step
        self._batch_size = batch_size
        self._minibatches = samples // batch_size
        self.times_s: list[float] = []

    def run(self, weights: Vector, gradient: Vector) -> None:
        """Gather a minibatch and write its gradient."""
        start = self._batch_size * (len(self.times_s) % self._minibatches)
        before_s = time.perf_counter()
        self._step.gather(0, start, start + self._batch_size)
        self._step.run(weights, gradient)
        self.times_s.append(time.perf_counter() - before_s)


class CountedStep:
    """A step that measures the CPU time of this process between pushes.

    ``computes`` writes the gradient, which is not measured; None: zeros. ``noted`` is called at the
    beginning and at the end of the measurement.
    """

    def __init__(self, computes: RecipeStep | None, noted: Callable[[], None]) -> None:
        self._computes = computes
        self._noted = noted
        self._until_s = 0.0
        self._own_s = 0.0
        self.steps = 0
        self.round_trips_s: list[float] = []
        self.used: list[tuple[float, float]] = []
        self.done: Callable[[], None] = lambda: None
        self._pushed_s = 0.0

    def gather(self, epoch: int, start: int, stop: int) -> None:
        """Do nothing: there are no samples."""

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Write a gradient."""
        now_s, own_s = time.perf_counter(), time.thread_time()
        self.steps += 1
        counted = self.steps - WARM_UP
        if counted > 0:
            self.round_trips_s.append(now_s - self._pushed_s)
        if counted == 0:
            self._until_s = now_s + EXCHANGE_SECONDS
            self._note()
        elif counted >= MIN_EXCHANGES and now_s >= self._until_s and len(self.used) == 1:
            self._note()
            self.done()
        if self._computes is None:
            gradient.fill(0.0)
        else:
            self._computes.run(weights, gradient)
        self._own_s += time.thread_time() - own_s
        self._pushed_s = time.perf_counter()
        return 0.0, 0

    def unbind(self) -> None:
        """Do nothing: no vector is borrowed."""

    def _note(self) -> None:
        self.used.append((time.thread_time() - self._own_s, time.process_time() - self._own_s))
        self._noted()


def measure_exchange(
    transport: str,
    parameters: int,
    gradients: int,
    optimizer: str,
    directory: Path,
    computes: RecipeStep | None = None,
) -> MeasuredExchange:
    """Measure a push of ``gradients``; ``transport``: ``tcp``, or shared memory.

    ``directory``: an empty directory for the server; ``computes`` writes the gradients. TCP is
    encrypted, as between hosts. Raise ProcessFailedError.
    """
    keys = directory / "keys"
    words = ["--parameters", str(parameters), "--optimizer", optimizer]
    words += ["--lease-minibatches", str(LEASES[gradients]), "--parent", str(os.getpid())]
    if transport == "tcp":
        create_keys(keys)
        add_keys(keys, WORKER)
        words += ["--keys", str(keys)]
    listen = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{directory}/server"
    server = Child(
        "server", "dist_net.training.run.measuring", [str(directory), listen, *words], directory
    )
    try:
        (address,) = server.wait_until_ready(START_TIMEOUT_S)
        step = CountedStep(computes, lambda: os.kill(server.process_id, signal.SIGUSR1))
        with WorkerLoop(
            lambda _: step,
            address,
            "worker",
            "",
            parameters,
            load_peer_keys(keys) if transport == "tcp" else None,
            shares_memory=transport != "tcp",
            rejoin_timeout_s=START_TIMEOUT_S,
        ) as worker:
            step.done = lambda: worker.stop("measured")
            worker.train()
        server.terminate()
        server.wait(END_TIMEOUT_S)
    finally:
        end([server], grace_s=0.0)
    try:
        used = json.loads((directory / "used.json").read_text())
        (first, last), (began, ended) = used, step.used
    except (OSError, ValueError) as error:
        raise ProcessFailedError(f"{server.name}: {server.last_words} ({error})") from error
    pushes = (last[2] - first[2]) / gradients
    server_s, worker_s = last[0] - first[0], ended[0] - began[0]
    return MeasuredExchange(
        server_s / pushes,
        (last[1] - first[1] - server_s) / pushes,
        worker_s / pushes,
        (ended[1] - began[1] - worker_s) / pushes,
        median(step.round_trips_s),
    )


def exchange_cost(
    small: tuple[float, float], large: tuple[float, float], size: int
) -> ExchangeCost:
    """Return a thread's cost of a push from measured seconds.

    ``small``: the seconds with one parameter, ``large``: with ``size`` parameters; each with one
    gradient, and with ``PIPELINE.grouped``. Negative differences are noise. If gradients in a group
    take longer each, because they exceed a cache, the group's time counts.
    """

    def parts_us(one_s: float, grouped_s: float) -> tuple[float, float]:
        gradient_s = max(0.0, grouped_s - one_s) / (PIPELINE.grouped - 1)
        gradient_s = min(gradient_s, grouped_s / PIPELINE.grouped)
        return 1e6 * max(0.0, one_s - gradient_s), 1e6 * gradient_s

    message_us, gradient_us = parts_us(*small)
    all_us, all_gradient_us = parts_us(*large)
    return ExchangeCost(
        message_us,
        gradient_us,
        1e3 * max(0.0, all_us - message_us) / size,
        1e3 * max(0.0, all_gradient_us - gradient_us) / size,
    )


def measure_transport(
    transport: str, parameters: int, optimizer: str, say: Callable[[str], None] = lambda _: None
) -> TransportCosts:
    """Return the threads' costs of pushes of ``parameters``: medians over rounds."""
    keep_freed_memory()
    cases = [(size, gradients) for size in (1, parameters) for gradients in LEASES]
    measured: dict[tuple[int, int], list[MeasuredExchange]] = {case: [] for case in cases}
    for turn in range(1, ROUNDS + 1):
        say(f"round {turn} of {ROUNDS}: {transport}")
        for case in cases:
            with temporary_directory() as directory:
                measured[case].append(measure_exchange(transport, *case, optimizer, directory))
    medians = {
        case: MeasuredExchange(*map(median, zip(*of, strict=True))) for case, of in measured.items()
    }
    one, grouped = LEASES
    server, server_transport, worker, worker_transport = (
        exchange_cost(
            (medians[1, one][place], medians[1, grouped][place]),
            (medians[parameters, one][place], medians[parameters, grouped][place]),
            parameters,
        )
        for place in range(4)
    )
    alone = medians[1, one]
    latency_s = max(0.0, alone.round_trip_s - sum(alone[:4])) / 2
    return TransportCosts(server, server_transport, worker, worker_transport, 1e6 * latency_s)


def measure_cluster(
    loaded: LoadedRecipe,
    dataset: Dataset,
    batch_size: int | None,
    threads: int,
    say: Callable[[str], None],
) -> ClusterCosts:
    """Measure all costs of a cluster that trains the recipe on this host."""
    options = RunOptions(loaded.reference, batch_size=batch_size).on(loaded, dataset)
    settings = options.settings(loaded)
    optimizer = type(settings.optimizer).__name__.lower()
    step_s = measure_step(loaded, dataset, settings.batch_size, threads)
    shared_memory, tcp = (
        measure_transport(transport, settings.vector_size, optimizer, say)
        for transport in ("shared memory", "tcp")
    )
    return ClusterCosts(
        settings.vector_size, settings.batch_size, threads, 1e3 * step_s, shared_memory, tcp
    )


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
    used: list[tuple[float, float, int]] = []
    with opened_server(
        *(settings, lambda: np.zeros(arguments.parameters, np.float32), [arguments.listen]),
        None if arguments.keys is None else load_server_keys(arguments.keys),
        *(directory / "checkpoint", directory / "journal", NO_CHECKPOINT_S),
    ) as (loop, addresses):
        stop_on_signals(loop.stop, arguments.parent)
        signal.signal(
            signal.SIGUSR1,
            lambda *_: used.append((time.thread_time(), time.process_time(), loop.version)),
        )
        loop.serve(ready=lambda: reports.ready(shlex.join(addresses)))
    (directory / "used.json").write_text(json.dumps(used))
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
