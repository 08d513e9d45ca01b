"""Workers of this host in a run of another host, in the process of ``dist-net join``.

The process supervises the workers and shows progress. Its directory holds their recipe and keys.
"""

import math
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_net.errors import (
    AccessRefusedError,
    InterruptedRunError,
    NoAnswerError,
    ProcessFailedError,
    ProtocolError,
)
from dist_net.nets.observer import NO_RECORDS, Following, Observer
from dist_net.nets.offered_recipe import MAX_MANIFEST_BYTES, OfferedRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.equipment import FAST
from dist_net.processes.launcher import POLL_S, LocalProcesses, ProcessSpec
from dist_net.processes.supervisor import Supervisor
from dist_net.training.run.local_run import WORKER_GRACE_S, worker_process
from dist_net.training.run.training_progress import Silence, TrainingProgress
from dist_net.wire.lease_steps import MAX_PARTS
from dist_net.wire.segment import available
from dist_net.wire.transport import ServerAccess

REPORT_EVERY_S = 0.5
ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class JoinedRunSettings:
    """The number of workers that join, their threads, and their timeouts.

    With ``may_fork``, a worker runs several processes. ``bits``: see ``equipment``.
    """

    workers: int
    threads: int
    restarts: int
    join_timeout_s: float
    rejoin_timeout_s: float
    may_fork: bool = True
    bits: str = FAST


def offered_by(server: ServerAccess, timeout_s: float) -> OfferedRecipe:
    """Return the recipe that the server trains; raise ``RecipeError``."""
    with Observer(*server, timeout_s=timeout_s, max_array_bytes=MAX_MANIFEST_BYTES) as observer:
        return OfferedRecipe.from_offer(observer.recipe())


class JoinedRun:
    """This host's part in a ``run``; the server has admitted it.

    ``directory`` holds keys and recipe, see ``OfferedRecipe.keep``; ``logs``, the processes' logs.
    """

    def __init__(
        self,
        run: Following,
        directory: RunDirectory,
        logs: Path,
        settings: JoinedRunSettings,
        display: TrainingProgress,
    ) -> None:
        run.keys, run.notify = directory.keys, display.warned  # of successors
        self._run = run
        self._directory = directory
        self._settings = settings
        self._display = display
        self._supervisor = Supervisor(LocalProcesses(logs), settings.restarts, display.warned)
        self._next_record = NO_RECORDS
        self._next_report_s = 0.0
        self._silence = Silence(display.warned, "the server answers again")
        self._is_refused = False
        # One worker stands for up to MAX_PARTS of this host, and exchanges states for all of them.
        parts = MAX_PARTS if settings.may_fork and available() else 1
        self._count = math.ceil(settings.workers / parts)
        self._parts = math.ceil(settings.workers / self._count)
        self.report: dict[str, Any] = {}

    def run(self) -> None:
        """Train until the run is done.

        Raise ProcessFailedError once no worker is left. No process outlives the call.
        """
        try:
            self._show_progress()
            self._supervisor.add_workers(self._spec, self._count)
            while self._is_training():
                self._show_progress()
                time.sleep(POLL_S)
        finally:
            self._supervisor.end(WORKER_GRACE_S)
        if (failure := self._supervisor.failure) is not None:
            raise failure

    def _spec(self, name: str) -> ProcessSpec:
        settings = self._settings
        shown = (socket.gethostname() + name.removeprefix("worker"))[:128]
        own = ["--name", shown, "--parts", str(self._parts)]
        own += ["--timeout", str(settings.join_timeout_s)]
        own += ["--rejoin-timeout", str(settings.rejoin_timeout_s)]
        facts = str(self._directory.path), self._run.words(), settings.threads, settings.bits
        return worker_process(name, *facts, *own)

    def _is_training(self) -> bool:
        """Restart workers that have died; return whether any worker is left."""
        self._supervisor.poll()
        ended = self._supervisor.ended_workers
        left = 0, InterruptedRunError.exit_code  # the last worker's failure has the reason
        self._supervisor.report_ended([each for each in ended if each.child.exit_code not in left])
        return len(ended) < self._count

    def _show_progress(self) -> None:
        """Show the server's report; notify the user once when it is silent or answers again."""
        now = time.monotonic()
        if now < self._next_report_s or self._is_refused:
            return
        self._next_report_s = now + REPORT_EVERY_S
        try:
            observed = self._run.observed(ANSWER_TIMEOUT_S, self._next_record, self._wait)
            with observed as (_, self.report):
                pass
        except (AccessRefusedError, ProtocolError) as error:
            self._is_refused = True  # the server refuses the workers too, and they end
            self._display.warned(str(error))
            return
        except (NoAnswerError, ProcessFailedError) as error:
            if self._is_training():
                self._silence.begins(f"{error}; the workers try again")
            return
        self._silence.ends()
        self._next_record = self.report["next_record"]
        self._display.progressed(self.report)

    def _wait(self, _waited_s: float) -> None:
        """Supervise during a request; raise ProcessFailedError if no worker is left."""
        if not self._is_training():
            raise ProcessFailedError("every worker of this host has ended")
