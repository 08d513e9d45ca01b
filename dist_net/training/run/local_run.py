"""A run, in the process of ``dist-net train``.

It starts a parameter server and workers, on this host or on nodes of a Ray cluster, supervises
them, evaluates the weights, and writes the run directory.

    this process ──starts──▶ parameter server ◀──ipc──  workers of its host
         └─────── observes ────────┘          ◀──tcp──  workers of other hosts
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from dist_net.command_line import TRUST
from dist_net.data import Dataset
from dist_net.errors import (
    DistNetError,
    FileWriteError,
    InterruptedRunError,
    ProcessFailedError,
    SettingError,
)
from dist_net.nets.observer import Observer
from dist_net.nets.recipes.recipe import LoadedRecipe
from dist_net.nets.recipes.recipe_files import RECIPE_FILE, trust
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.child import RunningChild
from dist_net.processes.listen_options import ListenOptions
from dist_net.processes.ray_cluster import RayCluster
from dist_net.processes.roles import Given, LocalProcesses, Role, Word
from dist_net.processes.supervisor import RESTARTS, SupervisedProcess, Supervisor
from dist_net.training.run.evaluation import BestWeights, Evaluation, evaluate_recipe
from dist_net.training.run.metrics_files import MetricsFiles
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import RunWarnings, TrainingProgress
from dist_net.training.worker.cycle import REJOIN_TIMEOUT_S
from dist_net.vector import Vector
from dist_net.wire.messages import Snapshot
from dist_net.wire.security import OPERATOR, ServerKeys, load_server_keys, make_keys
from dist_net.wire.transport import ServerSocket

START_TIMEOUT_S = 300.0
REPORT_EVERY_S = 0.25  # each report takes 3 ms of the server's time
SILENCE_S = 5.0  # until the user is notified that the server does not answer
ANSWER_TIMEOUT_S = REJOIN_TIMEOUT_S  # for how long the workers tolerate a stopped server
EVALUATION_SHARE = 0.05  # of the time, for short evaluations; the workers need the cores
EVALUATION_PAUSE_S = 1.0  # between long evaluations
WORKER_GRACE_S = 1.5  # until workers are killed: an interrupt takes at most 2 s
CHECKPOINT_GRACE_S = 30.0
SLOW_DISK_BYTES_PER_S = 5e6  # a network disk or a memory card
KILLED_RUN_ENDS_S = 5.0
"""The time for the server to write its checkpoint after its command was killed."""


@dataclass(frozen=True)
class LocalRunSettings:
    """The number of workers, and the addresses that the server listens on for others.

    Each process is restarted up to ``restarts`` times if it dies. The server may load for any time
    while it reports that it does; ``start_timeout_s`` limits its silence. Processes run on this
    host, or on the Ray cluster at ``ray_address``, where ``workers`` may be None: as many as there
    are free CPUs. Raise SettingError for a timeout of 0 or less.
    """

    workers: int | None
    listening: ListenOptions = field(default_factory=ListenOptions)
    restarts: int = RESTARTS
    ray_address: str | None = None
    start_timeout_s: float = START_TIMEOUT_S

    def __post_init__(self) -> None:
        if not self.start_timeout_s > 0:
            raise SettingError(f"start_timeout={self.start_timeout_s:g}: expected seconds above 0")

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the settings of a command line.

        Raise the errors of its addresses and keys, and of too few CPUs, before the run starts.
        """
        local = cls(
            workers=arguments.workers,
            listening=ListenOptions.from_arguments(arguments),
            restarts=arguments.restarts,
            ray_address=arguments.ray,
            start_timeout_s=arguments.start_timeout,
        )
        if local.ray_address is not None and local.workers:
            RayCluster(local.ray_address, Path()).cores_each(local.workers)
        listening = local.listening
        keys = ServerKeys.admitting_no_peer() if listening.needs_keys else None
        if listening.keys is not None:
            keys = load_server_keys(listening.keys)
        ServerSocket(listening.listen, keys).close()
        return local

    def launcher(self, directory: RunDirectory) -> LocalProcesses:
        if self.ray_address is None:
            return LocalProcesses(directory.logs, directory.path)
        return RayCluster(self.ray_address, directory.logs, directory, self.start_timeout_s)


REPORTED = (
    "consistency",
    "samples_per_update",
    "waiting_share",
    "epochs",
    "samples",
    "seconds",
    "samples_per_s",
    "pushes_applied",
    "pushes_rejected",
    "duplicates_dropped",
    "gradients_refused",
    "staleness_mean",
    "staleness_max",
    "workers_joined",
    "workers_lost",
    "samples_done_again",
    "checkpoints_failed",
    "journal_failures",
    "bytes_received_per_sample",
    "bytes_sent_per_sample",
)


Judge = Callable[[int, Vector], tuple[Evaluation | None, str]]
"""Evaluates the weights after some samples; training ends unless the reason returned is ""."""


class LocalRun:
    """The run in ``directory``. ``options``: returned by ``RunOptions.on``.

    ``judge`` evaluates instead of the recipe.
    """

    def __init__(
        self,
        directory: RunDirectory,
        loaded: LoadedRecipe,
        dataset: Dataset,
        options: RunOptions,
        local: LocalRunSettings,
        display: TrainingProgress,
        judge: Judge | None = None,
    ) -> None:
        fault = options.settings(loaded).size_fault
        if fault and (local.listening.listen or local.ray_address is not None):
            raise SettingError(fault)
        self._directory = directory
        self._loaded = loaded
        self._options = options
        self._best: BestWeights | None = None
        self._samples = len(dataset.train_targets)
        evaluate = evaluate_recipe(loaded.recipe, dataset)
        self._judge = judge or (lambda _, weights: (evaluate(weights), ""))
        self._local = local
        self._display = display
        self._launcher = local.launcher(directory)
        self._threads = 1
        self._supervisor = Supervisor(self._launcher, local.restarts, display.warned)
        self._next_record = 0
        self._evaluated_epochs = 0
        self._evaluate_after_s = 0.0
        self._listen = local.listening.listen
        self._keys = directory.keys if local.listening.needs_keys else local.listening.keys
        self._was_ready = False
        self._is_silent = False
        self.evaluation: Evaluation | None = None  # of the best weights, or else of the last
        self._warnings = RunWarnings(display.warned)
        self._has_workers = False
        self._stop_reason = ""

    def stop(self, reason: str) -> None:
        """End the run at the next report, as if every epoch were done."""
        self._stop_reason = reason

    def run(self) -> dict[str, Any]:
        """Train to the end; return the JSON object that ``dist-net train --json`` prints.

        Raise InterruptedRunError on KeyboardInterrupt, and ProcessFailedError when the server or
        every worker has ended and is not restarted. The server leaves a checkpoint if it can. No
        process outlives the call.
        """
        self._write_directory()
        if self._local.listening.needs_keys:
            make_keys(self._directory.keys)
        with self._launcher:
            if self._local.workers:
                self._threads = self._launcher.cores_each(self._local.workers)
            with self._supervisor.watching():
                try:
                    return self._start_and_watch()
                finally:
                    self._end()

    def _write_directory(self) -> None:
        loaded, options = self._loaded, self._options
        files = {} if loaded.is_built_in else loaded.files
        self._directory.begin(options.to_json(), files)
        self._metrics = MetricsFiles(self._directory, options.tensorboard)
        if RECIPE_FILE in files:
            trust(options.recipe_files)
        if options.keeps_best:
            settings = options.settings(loaded)
            self._best = BestWeights(self._directory.best, settings, options.patience)

    def _start_and_watch(self) -> dict[str, Any]:
        server = self._supervisor.add(self._server)
        try:
            self._supervisor.add_workers(self._worker, self._local.workers)
            return self._watch_to_the_end(server)
        except KeyboardInterrupt:
            self._end()
            raise _interruption(server.child, "interrupted") from None
        except ProcessFailedError:
            if server.child.exit_code == 0:
                raise _interruption(server.child, "ended from outside") from None
            raise

    def _watch_to_the_end(self, server: SupervisedProcess) -> dict[str, Any]:
        """Watch the server and its replacements. Raise ProcessFailedError after the last."""
        while True:
            child = server.child
            try:
                with Observer(
                    self._launcher.address,
                    self._launcher.keys,
                    ANSWER_TIMEOUT_S,
                    while_waiting=partial(self._wait, child),
                ) as observer:
                    outcome = self._watch(observer, child)
                self._await_checkpoint(child)
            except ProcessFailedError:
                if not (child.has_died and self._supervisor.is_replaced(server, child)):
                    raise
            else:
                return outcome

    def _wait(self, server: RunningChild, waited_s: float = 0.0) -> None:
        """Check during a request that the server runs; raise ProcessFailedError if not."""
        server.require_running()
        self._supervisor.require_running()
        if not self._is_silent and waited_s > SILENCE_S:
            self._is_silent = True
            self._display.warned("the parameter server does not answer: is it stopped?")

    def _server(self) -> Role:
        arguments: list[Word] = [Given.RUN_DIRECTORY, *self._launcher.server_options, *self._listen]
        arguments += ["--threads", str(self._threads), TRUST]  # `train` has asked by now
        if self._keys is not None:
            arguments += ["--keys", str(self._keys)]
        if self._directory.has_begun:
            arguments.append("--resume")
        # It also holds the directory's lock: it may write after this process is killed.
        return Role(
            "parameter-server",
            "dist_net.training.run.parameter_server_process",
            tuple(arguments),
            is_server=True,
            inherited=self._directory.lock_descriptors,
            bits=self._options.bits,
        )

    def _worker(self, name: str) -> Role:
        arguments: list[Word] = ["--run-dir", Given.RUN_DIRECTORY, *self._launcher.worker_options]
        arguments += ["--name", name, "--threads", str(self._threads), TRUST]
        arguments += ["--bits", self._options.bits]
        # Supervised workers wait for their server without a limit.
        arguments += ["--timeout", "inf", "--rejoin-timeout", "inf"]
        module = "dist_net.training.run.training_worker_process"
        words = tuple(arguments)
        return Role(name, module, words, cores=self._threads, bits=self._options.bits)

    def _watch(self, observer: Observer, server: RunningChild) -> dict[str, Any]:
        self._ready(
            server.wait_until_ready(
                self._local.start_timeout_s, partial(self._while_starting, server)
            )
        )
        self._begin_metrics(observer.status())
        while True:
            self._wait(server)  # it may have been replaced during an evaluation
            # Taken before the report: workers that leave a stopping server have not failed.
            ended = self._supervisor.ended_workers
            report = self._poll(observer)
            if report["state"] == "finished":
                break
            if report["state"] == "stopping":
                server.wait(checkpoint_grace_s(self._directory.checkpoint))
                raise server.failure()
            self._check_workers(ended, report)
            self._evaluate_if_due(observer, report)
            if self._best is not None and self._best.is_out_of_patience:
                self.stop("no progress for as many evaluations as --patience allows")
            if self._display.wants_end:
                self.stop("a callback returned True")
            if self._stop_reason:
                self._display.warned(f"stopped early: {self._stop_reason}")
                break
            time.sleep(REPORT_EVERY_S)
        while report["records"] and not self._stop_reason:
            report = self._poll(observer)
        last = self.evaluation if self._stop_reason else None
        evaluation = last or self._evaluate_now(observer)
        self._wait(server)
        observer.shut_down(self._stop_reason or "every epoch is done")
        return self._summary(report, self.evaluation or evaluation)

    def _summary(self, report: dict[str, Any], evaluation: Evaluation | None) -> dict[str, Any]:
        return {
            "recipe": self._loaded.name,
            "run_dir": str(self._directory.path),
            "checkpoint": str(self._directory.trained),
            "test_accuracy": evaluation and evaluation.accuracy,
            "test_loss": evaluation and evaluation.loss,
            **{name: report[name] for name in REPORTED},
            "warnings": self._warnings.last,
        }

    def _ready(self, addresses: list[str]) -> None:
        """Show the addresses for workers; a server that replaces this one listens on them too."""
        if not self._was_ready:
            self._open(addresses)
        if self._launcher.key_directory is not None:
            self._display.answers(self._launcher.address, self._launcher.key_directory)
        self._was_ready = True
        opened = addresses[len(addresses) - len(self._listen) :]
        self._listen = tuple(map(with_port_of, self._local.listening.listen, opened))
        self._next_record = 0
        self._has_workers = False

    def _open(self, addresses: list[str]) -> None:
        """Show how workers join: with an address, or with a token from another host."""
        listening = self._local.listening
        self._display.started(addresses[:1] if listening.needs_keys else addresses)
        if self._local.workers == 0:
            self._display.warned("--workers 0: the run begins when a worker joins")
        if listening.listen:
            where = listening.keys or self._directory.path
            self._display.opened(listening.lines(self._keys, addresses[1:], where))
        elif self._directory.keys.is_dir():
            self._display.warned("other hosts cannot join again: that needs --listen, as before")
        if listening.needs_keys:
            self._display.answers(addresses[1], self._directory.keys / OPERATOR)

    def _begin_metrics(self, report: dict[str, Any]) -> None:
        """After a resume, drop records after the checkpoint, and those that the server repeats."""
        repeated_from = min((each["samples"] for each in report["records"]), default=math.inf)
        kept = [
            record
            for record in self._directory.read_metrics()
            if record["samples"] <= report["samples"]
            and (record["kind"] == "test" or record["samples"] < repeated_from)
        ]
        self._metrics.replace(kept)
        for warning in report["resume_warnings"]:
            self._display.warned(warning)
        self._evaluated_epochs = report["samples"] // self._samples

    def _poll(self, observer: Observer) -> dict[str, Any]:
        report = observer.status(self._next_record)
        if self._is_silent:
            self._is_silent = False
            self._display.warned("the parameter server answers again")
        self._next_record = report["next_record"]
        self._metrics.append({"kind": "train", **each} for each in report["records"])
        self._display.progressed(report)
        self._warnings.notify_changes(report | {"metrics_error": self._metrics.error})
        return report

    def _while_starting(self, server: RunningChild) -> None:
        self._supervisor.require_running()
        self._display.loads([server])

    def _check_workers(self, ended: Sequence[SupervisedProcess], report: dict[str, Any]) -> None:
        """Warn if no worker is left anywhere; raise ProcessFailedError if none will come."""
        self._supervisor.report_ended(ended)
        failure = self._supervisor.failure
        has_workers = len(report["workers"]) > 0
        if failure is not None and not has_workers:
            raise failure
        if not has_workers:
            self._display.loads(self._supervisor.workers)
        if self._has_workers and not has_workers:
            self._display.warned("no worker is left: the run goes on when one joins")
        self._has_workers = has_workers

    def _evaluate_if_due(self, observer: Observer, report: dict[str, Any]) -> None:
        epochs = report["samples"] // self._samples
        began_s = time.monotonic()
        if epochs > self._evaluated_epochs and began_s >= self._evaluate_after_s:
            self._evaluated_epochs = epochs
            self._evaluate_now(observer)
            ended_s = time.monotonic()
            pause_s = min(EVALUATION_PAUSE_S, (ended_s - began_s) / EVALUATION_SHARE)
            self._evaluate_after_s = ended_s + pause_s

    def _evaluate_now(self, observer: Observer) -> Evaluation | None:
        snapshot = observer.snapshot()
        evaluation, reason = self._judge(snapshot.samples, snapshot.weights)
        if evaluation is None:
            return None
        record = {
            "kind": "test",
            "samples": snapshot.samples,
            "version": snapshot.version,
            "loss": evaluation.loss,
            "accuracy": evaluation.accuracy,
        }
        self._metrics.append([record])
        self._display.evaluated(snapshot.samples, evaluation)
        if reason:
            self.stop(reason)
        if self._best is None or self._is_best(self._best, snapshot, evaluation):
            self.evaluation = evaluation
        return evaluation

    def _is_best(self, best: BestWeights, snapshot: Snapshot, evaluation: Evaluation) -> bool:
        """Return whether these weights are the best so far, and were written."""
        score = evaluation.accuracy, evaluation.loss
        try:
            return best.take(*score, snapshot.version, snapshot.weights)
        except FileWriteError as error:
            self._display.warned(f"the best weights so far are not kept: {error}")
            return False

    def _await_checkpoint(self, server: RunningChild) -> None:
        grace_s = checkpoint_grace_s(self._directory.checkpoint)
        if not server.wait(grace_s):
            raise ProcessFailedError(
                f"the parameter server has not written {self._directory.checkpoint} in "
                f"{grace_s:.0f} s (log: {server.log})"
            )
        if server.exit_code != 0:
            raise server.failure()

    def _end(self) -> None:
        """End all processes; the server has time to write its checkpoint."""
        self._supervisor.end(WORKER_GRACE_S, checkpoint_grace_s(self._directory.checkpoint))


def checkpoint_grace_s(checkpoint: Path) -> float:
    """Return the time to allow for the last checkpoint, by the size of the one before."""
    try:
        size_bytes = checkpoint.stat().st_size
    except OSError:  # there was none yet
        size_bytes = 0
    return CHECKPOINT_GRACE_S + size_bytes / SLOW_DISK_BYTES_PER_S


def with_port_of(listen: str, contact: str) -> str:
    """Return the listen address with the chosen port, which the contact address has."""
    if not listen.endswith(":0"):
        return listen
    return f"{listen.removesuffix('0')}{contact.rpartition(':')[2]}"


def _interruption(server: RunningChild, how: str) -> DistNetError:
    if server.exit_code == ProcessFailedError.exit_code:
        return server.failure()
    return InterruptedRunError(how)
