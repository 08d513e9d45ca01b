"""The processes that the gateway starts, on its host or Ray's nodes: workers and model readers.

The supervisor is polled on the gateway's event loop, and at once when a process of this host ends.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from dist_net.clock import SystemClock
from dist_net.errors import BadInputError, DistNetError, ProcessFailedError
from dist_net.printable import printable
from dist_net.processes.child import RunningChild
from dist_net.processes.fork_server import ForkingProcesses
from dist_net.processes.launcher import ProcessSpec
from dist_net.processes.ray_cluster import RayCluster
from dist_net.processes.supervisor import Supervisor
from dist_net.serving.gateway.model_readers import ModelReaders, PoolSources
from dist_net.serving.pool.requests import ReadModel, RemoveArrays
from dist_net.wire.serving_messages import ModelPrepared

logger = logging.getLogger(__name__)

FORK_SERVER = "dist_net.serving.gateway.fork_server_process"
JOINS_WITHIN_S = 120.0
"""A process that is no member of the pool for this long hangs: before it joins, or afterwards."""
MAX_EARLY_ENDS = 3
"""The pool fails to start if a process ends this often before the pool is ready."""


class PoolProcesses:
    """Keep this host's fork server and a worker for each of ``specs`` running; read models.

    Each is restarted however often it ends, and killed if it does not join the pool. ``is_begun``:
    the pool has been ready; before, an end that would repeat makes ``require_startable`` raise.
    """

    def __init__(self, specs: Sequence[ProcessSpec], sources: PoolSources, logs: Path) -> None:
        self._local = ForkingProcesses(FORK_SERVER, logs)
        self._specs = [self._local.fork_server, *specs]
        self._readers = ModelReaders(self._local.start, sources, SystemClock())
        self._here = Supervisor(self._local, math.inf, _notify, may_restart=self._may_restart)
        self._supervisors = [self._here]
        self._start_on_ray: Callable[[], None] = lambda: None
        self._ends: Counter[str] = Counter()
        self._failure: DistNetError | None = None
        self._wake = asyncio.Event()
        self._member_s: dict[tuple[int, str], float] = {}  # when each started, or was a member last
        self.is_begun = False

    def add_ray(
        self, ray: RayCluster, worker: Callable[[str], ProcessSpec], count: int | None
    ) -> None:
        """Also keep workers running on Ray's nodes; see ``Supervisor.add_workers``."""
        on_ray = Supervisor(ray, math.inf, _notify, may_restart=self._may_restart)
        self._supervisors.append(on_ray)
        self._start_on_ray = partial(on_ray.add_workers, worker, count)

    def start(
        self,
        ended: Callable[[int, str, str], None],
        is_member: Callable[[int, str], bool],
        prepared: Callable[[ModelPrepared], None],
    ) -> asyncio.Task[None]:
        """Start the processes; return the task that supervises them on the running event loop.

        ``ended(process_id, host, reason)`` is called when a process has ended;
        ``is_member(process_id, host)`` returns whether one is in the pool; ``prepared`` is called
        with each version that was read. Raise ProcessFailedError.
        """
        self._ended, self._is_member, self._prepared = ended, is_member, prepared
        loop = asyncio.get_running_loop()
        # Not ``add_signal_handler``, which uvloop refuses for SIGCHLD.
        signal.signal(signal.SIGCHLD, lambda *_: loop.call_soon_threadsafe(self._wake.set))
        self._supervising = loop.create_task(self._supervise())
        for spec in self._specs:
            self._here.add(spec)
        self._start_on_ray()
        return self._supervising

    def read(self, command: ReadModel | RemoveArrays) -> None:
        """Read a model, or remove a version's file; never block."""
        self._readers.execute(command)
        self._wake.set()

    def require_startable(self) -> None:
        """Raise why the pool cannot start, if it cannot."""
        if self._failure is not None:
            raise self._failure

    def kill(self, process_id: int, host: str, reason: str) -> None:
        """Kill a process, even if it hangs or is stopped."""
        for supervisor in self._supervisors:
            for child in supervisor.children:
                if (child.process_id, child.host) != (process_id, host):
                    continue
                if child.exit_code is not None:
                    continue
                logger.warning("child_killed process=%d reason=%s", process_id, reason)
                if supervisor is self._here:  # without waiting for its end
                    with suppress(ProcessLookupError):
                        os.kill(process_id, signal.SIGKILL)
                else:
                    child.kill()

    def close(self, grace_s: float) -> None:
        """End all processes; kill the remaining processes after ``grace_s``."""
        self._supervising.cancel()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._local.stop_forking()
        self._readers.close()
        for supervisor in reversed(self._supervisors):
            supervisor.end(grace_s)

    async def _supervise(self) -> None:
        while True:
            self._local.receive()
            self._kill_outsiders(time.monotonic())
            pauses_s = [self._readers.poll(self._prepared)]
            pauses_s += [each.poll() for each in self._supervisors]
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(pauses_s))
            self._wake.clear()

    def _kill_outsiders(self, now: float) -> None:
        """Kill the processes that have not been members for ``JOINS_WITHIN_S``."""
        member_s, self._member_s = self._member_s, {}
        for child in (each for supervisor in self._supervisors for each in supervisor.children):
            process = child.process_id, child.host
            is_started = child.exit_code is None and child.process_id > 0  # by Ray, or forked
            if not is_started or child.name == self._local.fork_server.name:  # it has own limits
                continue
            self._member_s[process] = last_s = (
                now if self._is_member(*process) else member_s.get(process, now)
            )
            if now - last_s > JOINS_WITHIN_S:
                self.kill(*process, f"it was not in the pool for {JOINS_WITHIN_S:g} s")

    def _may_restart(self, child: RunningChild) -> bool:
        self._ended(child.process_id, child.host, child.last_words)
        self._ends[child.name] += 1
        if self.is_begun:
            return True
        if child.exit_code == BadInputError.exit_code:
            self._failure = BadInputError(child.last_words)
        elif self._ends[child.name] >= MAX_EARLY_ENDS:
            self._failure = ProcessFailedError(
                f"{child.name} has ended {MAX_EARLY_ENDS} times before the pool was ready; the "
                f"last reason: {child.last_words} (log: {child.log})"
            )
        return self._failure is None


def is_running(process_id: int, host: str) -> bool:
    """Return whether ``/proc`` lists this host's process as running, not stopped or dead."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return host == socket.gethostname() and state not in "TtZX"


def _notify(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
