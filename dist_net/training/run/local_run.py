"""A run, in the process of ``dist-net train``.

It starts a parameter server and workers, on this host or on nodes of a Ray cluster, supervises
them, evaluates the weights, and writes the run directory.

    this process ──starts──▶ parameter server ◀──ipc──  workers of its host
         └─────── observes ────────┘          ◀──tcp──  workers of other hosts
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from dist_net.data import Dataset
from dist_net.errors import (
    DistNetError,
    InterruptedRunError,
    NoAnswerError,
    ProcessFailedError,
    RunDirectoryError,
    SettingError,
    SupersededError,
)
from dist_net.ground.checkpoint import read_checkpoint, read_resumable_checkpoint
from dist_net.ground.command_line import TRUST
from dist_net.ground.json_records import record_from_json
from dist_net.nets.observer import NO_RECORDS, Following, Observer
from dist_net.nets.recipe_origins import origin_of
from dist_net.nets.recipes.recipe import LoadedRecipe
from dist_net.nets.recipes.recipe_files import RECIPE_FILE, trust
from dist_net.nets.run_directory import UNREADABLE, RunDirectory
from dist_net.processes.cluster_options import ListenOptions
from dist_net.processes.entry import LACKS, READY
from dist_net.processes.launcher import Given, LocalProcesses, ProcessSpec, RunningChild, Word
from dist_net.processes.ray_cluster import RayCluster
from dist_net.processes.supervisor import RESTARTS, SupervisedProcess, Supervisor
from dist_net.training.run.evaluation import BestWeights, Evaluation
from dist_net.training.run.metrics_files import MetricsFiles
from dist_net.training.run.periodic_evaluation import Judge, PeriodicEvaluation
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import RunNotices, Silence, TrainingProgress
from dist_net.training.server.copy_pace import SLOW_DISK_BYTES_PER_S
from dist_net.training.server.run_report import run_report
from dist_net.training.server.state import RunState
from dist_net.training.worker.cycle import REJOIN_TIMEOUT_S
from dist_net.wire.address import listen_address
from dist_net.wire.security import OPERATOR, ServerKeys, load_server_keys, make_keys
from dist_net.wire.transport import ServerSocket

START_TIMEOUT_S = 300.0
REPORT_EVERY_S = 0.25  # each report takes 3 ms of the server's time
AWAITED_EVERY_S = 5.0
SILENCE_S = 5.0  # until the user is notified that the server does not answer
ANSWER_TIMEOUT_S = REJOIN_TIMEOUT_S  # for how long the workers tolerate a stopped server
WORKER_GRACE_S = 1.5  # until workers are killed: an interrupt takes at most 2 s
CHECKPOINT_GRACE_S = 30.0
KILLED_RUN_ENDS_S = 5.0
"""The time for the server to write its checkpoint after its command was killed."""


@dataclass(frozen=True)
class LocalRunSettings:
    """The number of workers, and the addresses that the server listens on for others.

    Each process is restarted up to ``restarts`` times if it dies. The server may load for any time
    while it reports that it does; ``start_timeout_s`` limits its silence. Processes run on this
    host, or on the Ray cluster at ``ray_address``, where ``workers`` may be None: as many as there
    are free CPUs. A standby ends after a silence of the server of ``rejoin_timeout_s``. Raise
    SettingError for a timeout of 0 or less.
    """

    workers: int | None
    listening: ListenOptions = field(default_factory=ListenOptions)
    restarts: int = RESTARTS
    ray_address: str | None = None
    start_timeout_s: float = START_TIMEOUT_S
    rejoin_timeout_s: float = REJOIN_TIMEOUT_S

    def __post_init__(self) -> None:
        for name in ("start_timeout", "rejoin_timeout"):
            if not (seconds := getattr(self, f"{name}_s")) > 0:
                raise SettingError(f"{name}={seconds:g}: expected seconds above 0")

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
        if listening.listen:
            ServerSocket(listening.listen, keys).close()  # raises unless it can be bound
        return local

    @classmethod
    def of_run(cls, directory: RunDirectory) -> Self:
        """Return the settings with which a run was last started; raise RunDirectoryError."""
        try:
            return record_from_json(cls, json.loads(directory.cluster.read_bytes()))
        except FileNotFoundError:  # a run of an earlier release, or one that never began
            return cls(workers=None)
        except (*UNREADABLE, DistNetError) as error:
            raise RunDirectoryError(
                f"{directory.cluster}: {error!r:.80}; expected the settings of a run's cluster. "
                f"Delete the file, and pass --workers and --listen again"
            ) from error

    def to_json(self, listen: Sequence[str]) -> str:
        """Return the settings for ``of_run``; ``listen``: the addresses with the chosen ports."""
        keys = self.listening.keys and str(self.listening.keys.resolve())
        listening = asdict(self.listening) | {"listen": listen, "keys": keys}
        return json.dumps(asdict(self) | {"listening": listening})

    def launcher(self, directory: RunDirectory) -> LocalProcesses:
        if self.ray_address is None:
            return LocalProcesses(directory.logs, directory.path)
        return RayCluster(self.ray_address, directory.logs, directory, self.start_timeout_s)


REPORTED = (
    *("consistency", "samples_per_update", "waiting_share", "epochs", "samples", "seconds"),
    *("samples_per_s", "pushes_applied", "pushes_rejected", "duplicates_dropped"),
    *("gradients_refused", "staleness_mean", "staleness_max", "workers_joined", "workers_lost"),
    *("samples_done_again", "checkpoints_failed", "journal_failures"),
    *("bytes_received_per_sample", "bytes_sent_per_sample"),
)


@dataclass(frozen=True)
class RunHost:
    """This host's part in a run: the run's directory, the processes, and the display.

    With ``follows``, it is a standby: its server copies that run of another host, which its workers
    serve, until it takes over.
    """

    directory: RunDirectory
    local: LocalRunSettings
    display: TrainingProgress
    follows: Following | None = None


class LocalRun:
    """A run with its server on this host. A standby has a ``StandbyRun``.

    ``options``: returned by ``RunOptions.on``. ``judge`` evaluates instead of the recipe.
    """

    def __init__(
        self,
        host: RunHost,
        loaded: LoadedRecipe,
        dataset: Dataset,
        options: RunOptions,
        judge: Judge | None = None,
    ) -> None:
        directory, local, display = host.directory, host.local, host.display
        settings = self._settings = options.settings(loaded)
        if settings.size_fault and (local.listening.listen or local.ray_address is not None):
            raise SettingError(settings.size_fault)
        self._directory = directory
        self._loaded = loaded
        self._options = options
        self._local = local
        self._display = display
        self._launcher = local.launcher(directory)
        self._supervisor = Supervisor(self._launcher, local.restarts, display.warned)
        self._threads = 1
        self._listen = local.listening.listen
        self._keys = directory.keys if local.listening.needs_keys else local.listening.keys
        self._was_ready = False
        self._has_workers = False
        self._lacking = list[str]()
        self._next_record = self._term = 0
        self._silence = Silence(display.warned, "the parameter server answers again")
        self._notices = RunNotices(display.warned, display.members_changed)
        self._metrics = MetricsFiles(directory, options.tensorboard)
        best: BestWeights | None = None
        if options.keeps_best:
            best = BestWeights(directory.best, settings, options.patience)
        self._evaluations = PeriodicEvaluation(
            loaded.recipe, dataset, best=best, metrics=self._metrics, display=display, judge=judge
        )

    @property
    def evaluation(self) -> Evaluation | None:
        """Of the best weights, or else of the last."""
        return self._evaluations.evaluation

    def run(self) -> dict[str, Any]:
        """Train to the end; return the JSON object that ``dist-net train --json`` prints.

        Raise InterruptedRunError on KeyboardInterrupt, SupersededError when another host continues
        the run, and ProcessFailedError when the server or every worker has ended and is not
        restarted. The server leaves a checkpoint if it can. No process outlives the call.
        """
        self._begin()
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

    def _begin(self) -> None:
        loaded, options = self._loaded, self._options
        self._display.begins(self._directory)
        files = origin_of(loaded.reference).files_of(loaded)
        self._directory.begin(options.to_json(), files)
        self._write_settings()
        if RECIPE_FILE in files:
            trust(options.recipe_files)

    def _write_settings(self) -> None:
        self._directory.write(self._directory.cluster, self._local.to_json(self._listen))

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
            if server.child.exit_code == SupersededError.exit_code:
                raise SupersededError(server.child.last_words) from None
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
                    nobody_s=ANSWER_TIMEOUT_S,
                ) as observer:
                    report = self._watch(observer, child)
                return self._summary(report)
            except ProcessFailedError:
                if not (child.has_died and self._supervisor.is_replaced(server, child)):
                    raise

    def _wait(self, server: RunningChild, waited_s: float = 0.0) -> None:
        """Check during a request that the server runs; raise ProcessFailedError if not."""
        server.require_running()
        self._supervisor.require_running()
        if waited_s > SILENCE_S:
            self._silence.begins("the parameter server does not answer: is it stopped?")

    def _server(self) -> ProcessSpec:
        arguments: list[Word] = [Given.RUN_DIRECTORY, *self._launcher.server_options, *self._listen]
        arguments += ["--threads", str(self._threads), TRUST]  # `train` has asked by now
        if self._keys is not None:
            arguments += ["--keys", str(self._keys)]
        if self._local.listening.contact is not None:
            arguments += ["--contact", self._local.listening.contact]
        arguments += self._server_role()
        # It also holds the directory's lock: it may write after this process is killed.
        return ProcessSpec(
            "parameter-server",
            "dist_net.training.run.parameter_server_process",
            tuple(arguments),
            is_server=True,
            inherited=self._directory.lock_descriptors,
            bits=self._options.bits,
        )

    def _server_role(self) -> Sequence[Word]:
        """Return the arguments by which the server begins, resumes or follows the run."""
        return ["--resume"] if self._directory.has_begun else []

    def _server_of_workers(self) -> Sequence[Word]:
        return self._launcher.worker_options

    def _worker(self, name: str) -> ProcessSpec:
        facts = Given.RUN_DIRECTORY, self._server_of_workers(), self._threads, self._options.bits
        # Supervised workers wait for their server without a limit.
        waits = "--timeout", "inf", "--rejoin-timeout", "inf"
        return worker_process(name, *facts, "--name", name, *waits)

    def _watch(self, observer: Observer, server: RunningChild) -> dict[str, Any]:
        """Watch the run until the server has ended; return its last report, {} of others."""
        self._ready(self._started(server))
        reason = ""
        while not reason:
            self._wait(server)  # it may have been replaced during an evaluation
            # Taken before the report: workers that leave a stopping server have not failed.
            ended = self._supervisor.ended_workers
            report = self._show(observer, observer.status(self._next_record))
            if report["state"] == "finished":
                break
            if report["state"] == "stopping":
                server.wait(checkpoint_grace_s(self._directory.checkpoint))
                raise server.failure()
            self._check_workers(ended, report)
            self._evaluations.take_if_due(report["samples"], observer.snapshot)
            reason = self._evaluations.stop_reason
            if self._display.wants_end:
                reason = "a callback returned True"
            time.sleep(0.0 if reason else REPORT_EVERY_S)
        if reason:
            self._display.warned(f"stopped early: {reason}")
        while report["records"] and not reason:
            report = self._show(observer, observer.status(self._next_record))
        if not reason:
            self._evaluations.take(observer.snapshot())
        self._wait(server)
        report = observer.shut_down(reason or "every epoch is done")
        return self._await_end(observer, server, report)

    def _started(self, server: RunningChild, awaited: str = READY) -> list[str]:
        """Return the addresses of a server, once it has printed the awaited word."""

        def show() -> None:
            self._supervisor.require_running()
            self._display.loads([server])

        return server.wait_until_ready(self._local.start_timeout_s, show, awaited)

    def _summary(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON object about the files of the directory."""
        last = read_resumable_checkpoint(self._directory.checkpoint)
        if report.get("version") != last.version:
            report = run_report(RunState.resumed(self._settings, last), NO_RECORDS, now=0.0)
            report |= {"consistency": str(self._settings.consistency)}
        has_best = self._options.keeps_best and self._directory.best.exists()
        file = self._directory.best if has_best else self._directory.checkpoint
        model = read_checkpoint(file) if has_best else last
        evaluation = self._evaluations.of(model)
        return {
            "recipe": self._loaded.name,
            "run_dir": str(self._directory.path),
            "checkpoint": str(file),
            "version": model.version,
            "test_accuracy": evaluation and evaluation.accuracy,
            "test_loss": evaluation and evaluation.loss,
            **{name: report[name] for name in REPORTED},
            "warnings": self._notices.warnings + self._lacking,
        }

    def _ready(self, addresses: list[str]) -> None:
        """Show the addresses for workers; a server that replaces this one listens on them too."""
        if not self._was_ready:
            self._open(addresses)
        if self._launcher.key_directory is not None:
            self._display.answers(self._launcher.address, self._launcher.key_directory)
        self._was_ready = True
        self._keep_ports(addresses)
        self._has_workers = False

    def _keep_ports(self, addresses: list[str]) -> None:
        """Let a server that replaces this one listen on the ports that it chose."""
        opened = addresses[len(addresses) - len(self._listen) :]
        listen = tuple(map(with_port_of, self._local.listening.listen, opened))
        if listen != self._listen:  # not again after a restart: the disk may be full by then
            self._listen = listen
            self._write_settings()

    def _open(self, addresses: list[str]) -> None:
        """Show how workers join: with an address, or with a token from another host."""
        listening = self._local.listening
        self._display.started(addresses[:1] if listening.needs_keys else addresses)
        if self._local.workers == 0:
            self._display.warned("--workers 0: the run begins when a worker joins")
        if listening.listen:
            where = listening.keys or self._directory.path
            self._display.opened(listening.lines(self._keys, addresses[1:], where))
        if listening.needs_keys:
            address = local_address(listening.listen[0], addresses[1])
            self._display.answers(address, self._directory.keys / OPERATOR)
        if self._keys is not None:
            self._launcher.announce(listening.known_as(addresses[1:]), self._keys)

    def _begin_metrics(self, report: dict[str, Any]) -> None:
        """After a resume, drop records that the server repeats, or that its checkpoint lacks."""
        repeated_from = min((each["samples"] for each in report["records"]), default=math.inf)
        records = self._directory.read_metrics()
        kept = [
            record
            for record in records
            if record["samples"] <= report["samples"]
            and (record["kind"] == "test" or record["samples"] < repeated_from)
        ]
        if records:  # a standby's process may be writing the first records
            self._metrics.replace(kept)
        for warning in report["resume_warnings"]:
            self._display.warned(warning)
        self._evaluations.resume(report["samples"])

    def _show(self, observer: Observer, report: dict[str, Any]) -> dict[str, Any]:
        """Show and record a report; return it, or a whole one of another start of the server."""
        if report["term"] != self._term:  # its records are others
            report = observer.status()
            self._begin_metrics(report)
            self._term = report["term"]
        self._silence.ends()
        self._next_record = report["next_record"]
        self._metrics.append({"kind": "train", **each} for each in report["records"])
        self._display.progressed(report)
        self._notices.notify_changes(report | {"metrics_error": self._metrics.error})
        return report

    def _check_workers(self, ended: Sequence[SupervisedProcess], report: dict[str, Any]) -> None:
        """Warn if no worker is left anywhere; raise ProcessFailedError if none will come."""
        self._supervisor.report_ended(ended)
        had_workers, self._has_workers = self._has_workers, len(report["workers"]) > 0
        if not self._has_workers:
            if (failure := self._supervisor.failure) is not None:
                raise failure
            self._display.loads(self._supervisor.workers)
            if had_workers:
                self._display.warned("no worker is left: the run goes on when one joins")

    def _await_end(
        self, observer: Observer, server: RunningChild, report: dict[str, Any]
    ) -> dict[str, Any]:
        """Wait for the server's end, and show which hosts it waits for; return the last report."""
        grace_s, shown_s = checkpoint_grace_s(self._directory.checkpoint), -math.inf
        until_s = time.monotonic() + grace_s
        try:
            while server.exit_code is None and (now := time.monotonic()) < until_s:
                with suppress(NoAnswerError, ProcessFailedError):  # it ends meanwhile
                    report = self._show(observer, observer.status(self._next_record))
                    until_s = now + grace_s if report["awaited"] else until_s
                    if report["awaited"] and now > shown_s + AWAITED_EVERY_S:
                        shown_s, names = now, ", ".join(report["awaited"])
                        self._display.warned(
                            f"the last version of the run is on its way to {names}; "
                            f"Ctrl-C ends the run without waiting"
                        )
                    server.wait(REPORT_EVERY_S)
        except KeyboardInterrupt:
            server.terminate()
        if not server.wait(grace_s):
            raise ProcessFailedError(
                f"the parameter server has not written {self._directory.checkpoint} in "
                f"{grace_s:.0f} s (log: {server.log})"
            )
        if server.exit_code != 0:
            raise server.failure()
        self._lacking = [
            f"{host}, a standby, lacks the last version of the run"
            for host in server.printed(LACKS)
        ]
        return report

    def _end(self) -> None:
        """End all processes; the server has time to write its checkpoint."""
        self._supervisor.end(WORKER_GRACE_S, checkpoint_grace_s(self._directory.checkpoint))


def worker_process(
    name: str, directory: Word, server: Sequence[Word], threads: int, bits: str, *own: str
) -> ProcessSpec:
    """Return a worker of the run in ``directory``; its ``own`` options have its name and limits.

    The user has confirmed the recipe by then.
    """
    words = "--run-dir", directory, *server, "--threads", str(threads), "--bits", bits, TRUST
    module = "dist_net.training.run.training_worker_process"
    return ProcessSpec(name, module, (*words, *own), cores=threads, bits=bits)


def checkpoint_grace_s(checkpoint: Path) -> float:
    """Return the time to allow for the last checkpoint, by the size of the checkpoint before."""
    try:
        size_bytes = checkpoint.stat().st_size
    except OSError:  # there was none yet
        size_bytes = 0
    return CHECKPOINT_GRACE_S + size_bytes / SLOW_DISK_BYTES_PER_S


def local_address(listen: str, contact: str) -> str:
    """Return the address for processes of this host, whose own name may not resolve."""
    is_any = listen_address(listen).host in ("0.0.0.0", "::")
    return f"tcp://127.0.0.1:{contact.rpartition(':')[2]}" if is_any else contact


def with_port_of(listen: str, contact: str) -> str:
    if not listen.endswith(":0"):
        return listen
    return f"{listen.removesuffix('0')}{contact.rpartition(':')[2]}"


def _interruption(server: RunningChild, how: str) -> DistNetError:
    if server.exit_code == ProcessFailedError.exit_code:
        return server.failure()
    return InterruptedRunError(how)
