"""A cluster inside this process: a parameter server and workers in threads, over real sockets.

For tests, and for trying things where processes would be in the way, such as in a notebook:

    with LocalCluster(load_recipe("digits").recipe, workers=2) as cluster:
        report = cluster.wait()
        weights = cluster.snapshot().weights

Threads share one interpreter, so more of them make a run no faster.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from threadpoolctl import threadpool_limits

from dist_net.errors import ProcessFailedError, RecipeError, RunOverdueError
from dist_net.ground.checkpoint import read_resumable_checkpoint
from dist_net.nets.observer import Observer
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe
from dist_net.processes.equipment import own_equipment
from dist_net.processes.own_directory import temporary_directory
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.loop import opened_server
from dist_net.training.server.server_files import ServerFiles
from dist_net.training.worker.cycle import Ended
from dist_net.training.worker.local_steps import LocalStepsOf, local_steps
from dist_net.training.worker.loop import WorkerLoop
from dist_net.wire.messages import Join, Snapshot
from dist_net.wire.security import CLIENT, PeerKeys, load_peer_keys, load_server_keys
from dist_net.wire.transport import ServerAccess, ServerSocket

LOOPBACK = "tcp://127.0.0.1:0"
MAX_THREADS = 65  # a server and workers
POLL_S = 0.01
CHECKPOINT_EVERY_S = 30.0


def _loaded(recipe: Recipe) -> LoadedRecipe:
    """Return the recipe with a reference that names no file."""
    return LoadedRecipe("in-process", "in-process", {}, recipe)


class InProcessWorker:
    """A worker in a thread.

    The caller's thread creates its socket, to get its errors, and passes it on unused.
    """

    def __init__(self, loop: WorkerLoop, threads: ThreadPoolExecutor) -> None:
        self._loop = loop
        self._ended = threads.submit(self._train)

    def _train(self) -> Ended:
        with self._loop as loop:
            return loop.train()

    def stop(self, reason: str = "stopped") -> None:
        """Leave the run after the current step."""
        self._loop.stop(reason)

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    def result(self, timeout_s: float = 10.0) -> Ended:
        """Wait for its end; return the server's last message, or raise the error that ended it."""
        return self._ended.result(timeout_s)


@dataclass(eq=False, repr=False)
class LocalCluster:
    """A context with a parameter server for ``recipe``, and ``workers``, in threads.

    At the end of the context, server and workers are stopped, if need be in mid-run. The run is
    kept in the file ``checkpoint`` and its journal in the same place with the suffix ``.journal``,
    from which ``resume`` continues; None: it is not kept. ``keys``: a directory with the keys of a
    server, a worker and a client. Raise BadInputError.
    """

    recipe: Recipe
    checkpoint: Path | None = None
    _: KW_ONLY
    workers: int = 0
    listen: str = LOOPBACK
    keys: Path | None = None
    seed: int = 0
    consistency: str = str(Consistency.ROUNDS)
    local_steps: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe):
            raise RecipeError(f"recipe={self.recipe!r:.40}: expected a Recipe; see load_recipe")
        self._worker_keys: PeerKeys | None = None
        self._workers: list[InProcessWorker] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            stack.callback(self.stop)
            for _ in range(self.workers):
                self.start_worker()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        recipe, seed = self.recipe, self.seed
        loaded, self._dataset = _loaded(recipe), recipe.load_dataset()
        modes: dict[str, Any] = {"consistency": self.consistency, "local_steps": self.local_steps}
        options = RunOptions(loaded.reference, seed=seed, **modes)
        settings = options.on(loaded, self._dataset).settings(loaded)
        server_keys = client_keys = None
        if self.keys is not None:
            server_keys, self._worker_keys = load_server_keys(self.keys), load_peer_keys(self.keys)
            client_keys = load_peer_keys(self.keys, CLIENT)
        temporary = stack.enter_context(temporary_directory())
        path = self.checkpoint or temporary / "checkpoint.safetensors"
        begin = read_resumable_checkpoint(path) if self.resume else recipe.initial_weights(seed)
        longest = 4 * settings.packing.result_size
        socket = stack.enter_context(ServerSocket([self.listen], server_keys, longest))
        files = ServerFiles(path, path.with_suffix(".journal"), CHECKPOINT_EVERY_S)
        self._server = stack.enter_context(opened_server(socket, settings, begin, files))
        self.address = socket.contact_addresses[0]
        self._observer = stack.enter_context(Observer(self.address, client_keys))
        stack.enter_context(threadpool_limits(1))
        self._threads = stack.enter_context(ThreadPoolExecutor(MAX_THREADS, "dist-net"))
        self._served: Future[None] = self._threads.submit(self._server.serve)

    def start_worker(
        self,
        *,
        recipe: Recipe | None = None,
        local_of: LocalStepsOf | None = None,
        shares_memory: bool = True,
    ) -> InProcessWorker:
        """Start another worker, at any time of the run.

        ``recipe`` and ``local_of``, which returns the local steps for the run's settings, replace
        those of the cluster. Without ``shares_memory``, arrays travel as frames.
        """
        dataset = self._dataset if recipe is None else recipe.load_dataset()
        recipe = recipe or self.recipe
        digest, equipment = _loaded(recipe).digest(dataset), own_equipment(threads=1)
        facts = f"worker-{len(self._workers)}", 0, digest, recipe.layout.size, shares_memory
        loop = WorkerLoop(
            local_of or partial(local_steps, recipe, dataset),
            ServerAccess(self.address, self._worker_keys),
            Join(*facts, equipment=equipment),
        )
        self._workers.append(InProcessWorker(loop, self._threads))
        return self._workers[-1]

    def report(self) -> dict[str, Any]:
        """Return the server's current report; see ``dist-net status --json``."""
        return self._observer.status()

    def snapshot(self) -> Snapshot:
        """Return the current weights, and the number of samples that they were trained on."""
        return self._observer.snapshot()

    def wait(
        self, until: Callable[[dict[str, Any]], bool] | None = None, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """Wait until the run is finished or ``until(report)`` is true; return the report.

        Raise the server's error, ProcessFailedError if the last worker ends first, and
        RunOverdueError after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._served.done():
                self._served.result()
                raise ProcessFailedError("the parameter server has been stopped")
            workers_have_ended = self._workers and all(each.has_ended for each in self._workers)
            report = self.report()
            if report["state"] == "finished" or (until is not None and until(report)):
                return report
            if workers_have_ended and not report["workers"]:
                self._workers[-1].result()
                raise ProcessFailedError("the last worker has left before the run was done")
            if time.monotonic() > deadline:
                raise RunOverdueError(
                    f"{report['samples']} of {report['samples_total']} samples are done after "
                    f"{timeout_s:g} s, and {len(report['workers'])} workers are training"
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End workers and server, which writes a checkpoint. Raise the server's error."""
        for worker in self._workers:
            worker.stop("the cluster is stopped")
        self._server.stop("the cluster is stopped")
        self._served.result()
