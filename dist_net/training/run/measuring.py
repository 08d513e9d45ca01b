"""Measure the costs of a cluster on this host: a worker's step, and an exchange of states.

For an exchange, a server and a worker that computes nothing run in a thread each. They work in
turn, and their CPU time is measured, which depends little on other processes of the machine.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import median

import numpy as np

from dist_net.data import Dataset
from dist_net.errors import SettingError
from dist_net.nets.recipes.recipe import LoadedRecipe
from dist_net.optim import OPTIMIZERS, UpdateRule
from dist_net.processes.cores import available_cores
from dist_net.processes.entry import keep_freed_memory, use_threads
from dist_net.processes.own_directory import temporary_directory
from dist_net.training.planner.costs import ExchangeCost
from dist_net.training.server.loop import ServerFiles, ServerLoop, opened_server
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.local_steps import LocalSteps, Minibatch
from dist_net.training.worker.loop import WorkerLoop
from dist_net.training.worker.step import local_steps
from dist_net.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.security import WORKER, add_keys, create_keys, load_peer_keys, load_server_keys

STEP_SECONDS, MIN_STEPS = 1.0, 5
EXCHANGE_CPU_SECONDS, MIN_EXCHANGES = 0.5, 50
SAMPLES, NO_CHECKPOINT_S = 2**32 - 1, 1e9  # more than a measurement takes
PARTS = 2  # of the worker's leases: several, so that the server takes outer steps
# By the number of vectors, all that an exchange depends on.
OPTIMIZER_OF = {len(each.initial_state): each for each in OPTIMIZERS.values()}


def measure_step(
    loaded: LoadedRecipe, dataset: Dataset, settings: RunSettings, threads: int
) -> float:
    """Return the median seconds of a local step; raise SettingError for too many threads."""
    if threads > available_cores():
        raise SettingError(
            f"threads={threads}: expected at most {available_cores()}, the cores of this host"
        )
    use_threads(threads)
    local = local_steps(loaded.recipe, dataset, settings.step_settings, threads)
    state = local.rule.initial(loaded.recipe.initial_weights(settings.seed))
    whole_minibatches = settings.samples // settings.batch_size * settings.batch_size
    began_s: list[float] = []
    while True:
        for _ in local.take(state, LeaseSteps(0, 0, whole_minibatches, 0, 0, settings.batch_size)):
            began_s.append(time.perf_counter())
            # The first step compiles.
            if len(began_s) > MIN_STEPS and began_s[-1] > began_s[1] + STEP_SECONDS:
                use_threads(1)
                return median(after - before for before, after in pairwise(began_s[1:]))


class LeasesWithoutSteps(LocalSteps):
    """Return each lease's first state as that after a step; call ``done`` after enough leases."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.state = np.zeros(rule.state_size, np.float32)
        self.loss_sum, self.correct = 0.0, 0
        self.due = self.state[: rule.size], Minibatch(0, 0, 0)
        self.done: Callable[[], None] = lambda: None
        self.used_s: list[tuple[float, float]] = []
        """CPU time at each lease, of all threads and of this one."""

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Copy ``base``, as for a first step; yield once."""
        self.used_s.append((time.process_time(), time.thread_time()))
        used_s = self.used_s[-1][0] - self.used_s[0][0]
        if len(self.used_s) > MIN_EXCHANGES and used_s > EXCHANGE_CPU_SECONDS:
            self.done()
        np.copyto(self.state, base)
        self.state[-1] += 1  # the server refuses a result without a step
        yield


def measure_exchange(shares_memory: bool, parameters: int, vectors: int) -> list[float]:
    """Return the CPU seconds of an exchange: of the server's busier thread, and of all threads.

    States are in shared memory, or travel over TCP, encrypted as between hosts. They consist of
    ``parameters`` and as many elements in each of the optimizer's ``vectors``.
    """
    layout, optimizer = (("weights", (parameters,)),), OPTIMIZER_OF[vectors]
    settings = RunSettings("", "", layout, SAMPLES, 1, 1, optimizer=optimizer, local_steps=1)
    local = LeasesWithoutSteps(settings.start_rule())
    with temporary_directory() as directory:
        listen, server_keys, keys = f"ipc://{directory}/server", None, None
        if not shares_memory:
            create_keys(directory / "keys")
            add_keys(directory / "keys", WORKER)
            listen, server_keys = "tcp://127.0.0.1:0", load_server_keys(directory / "keys")
            keys = load_peer_keys(directory / "keys")
        with (
            opened_server(
                settings,
                lambda: np.zeros(parameters, np.float32),
                ServerFiles(directory / "checkpoint", directory / "journal", NO_CHECKPOINT_S),
                [listen],
                server_keys,
            ) as (server, (address,)),
            ThreadPoolExecutor(1, "server") as threads,
        ):
            served = threads.submit(_serve, server)
            who = address, "worker", "", parameters
            try:
                with WorkerLoop(
                    lambda _: local, *who, keys=keys, shares_memory=shares_memory, parts=PARTS
                ) as worker:
                    local.done = lambda: worker.stop("measured")
                    worker.train()
            finally:
                server.stop("measured")
            server_s = served.result() / server.version
    used_s = np.subtract(local.used_s[-1], local.used_s[0]) / (len(local.used_s) - 1)
    all_s, worker_s = map(float, used_s)
    # Another thread copies and encrypts for the server, and for the worker as much.
    return [max(server_s, (all_s - server_s - worker_s) / 2), all_s]


def _serve(server: ServerLoop) -> float:
    """Serve until the server is stopped; return the CPU seconds of this thread."""
    began_s: list[float] = []
    server.serve(ready=lambda: began_s.append(time.thread_time()))
    return time.thread_time() - began_s[0]


def measure_transport(shares_memory: bool, parameters: int, vectors: int) -> ExchangeCost:
    """Return the cost of exchanges of such states; see ``measure_exchange``."""
    keep_freed_memory()
    vectors = min(vectors, max(OPTIMIZER_OF))
    small, large = (measure_exchange(shares_memory, size, vectors) for size in (1, 1 + parameters))
    server, round_trip = (
        (1e6 * small_s, 1e9 * max(0.0, large_s - small_s) / (parameters * (1 + vectors)))
        for small_s, large_s in zip(small, large, strict=True)
    )
    return ExchangeCost(*server, *round_trip)
