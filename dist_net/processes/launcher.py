"""Specify, start, await and end the processes of a cluster on this host.

The processes are parameter servers, workers and inference workers. ``Supervisor`` starts them
through a launcher. Exit codes and output of a process mean:

    code 0                 its work is done
    FAILED and a reason    another start would end likewise: bad input, a run that is over
    any other end          it died; another start may succeed
"""

import contextlib
import math
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import IO, Protocol, Self

from dist_net.errors import BadInputError, ProcessFailedError
from dist_net.processes.entry import FAILED, LOADING, READY, STANDBY
from dist_net.processes.equipment import FAST, available_cores, python_with
from dist_net.processes.own_directory import announce, temporary_directory
from dist_net.processes.token_arguments import hide_tokens
from dist_net.wire.security import PeerKeys

POLL_S = 0.1
EXIT_POLL_S = 0.005

hurry = threading.Event()
"""Set by a second interrupt: kill processes instead of waiting for them to end."""


class Given(Enum):
    """An argument of a process that its launcher fills in."""

    RUN_DIRECTORY = auto()
    SERVER = auto()  # the address of the cluster's server: on the server's host, a Unix socket
    SERVER_BEYOND = auto()  # its address for other hosts
    KEYS = auto()


Word = str | Given


@dataclass(frozen=True)
class ProcessSpec:
    """``python -m MODULE --parent PROCESS_ID ARGUMENTS...``; its name is for logs and messages.

    The process ends when its parent, the process that started it, has ended. ``cores``: the number
    of cores that it keeps busy. ``is_server``: the cluster's only server, which writes its state
    when it is terminated. ``inherited``: file descriptors that a process on this host inherits.
    ``bits``: see ``equipment``.
    """

    name: str
    module: str
    arguments: tuple[Word, ...]
    cores: int = 1
    is_server: bool = False
    inherited: tuple[int, ...] = ()
    bits: str = FAST

    def words(self, given: Mapping[Given, str]) -> list[str]:
        return [given[word] if isinstance(word, Given) else word for word in self.arguments]


class Process(Protocol):
    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def output_files(name: str, logs: Path) -> tuple[Path, Path]:
    """Return the files for a process's stdout, which its parent reads, and for its log."""
    return logs / f"{name}.out", logs / f"{name}.log"


@contextlib.contextmanager
def outputs(name: str, logs: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """Open these files; the first is truncated, the log is continued."""
    said, log = output_files(name, logs)
    logs.mkdir(parents=True, exist_ok=True)  # the user may have removed it
    with said.open("w") as output, log.open("a") as errors:
        yield output, errors


class RunningChild:
    def __init__(self, name: str, logs: Path, process: Process) -> None:
        self.name = name
        self.said, self.log = output_files(name, logs)
        self._process = process

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def host(self) -> str:
        return getattr(self._process, "host", socket.gethostname())

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def wait_until_ready(
        self,
        silence_s: float,
        while_waiting: Callable[[], None] = lambda: None,
        awaited: str = READY,
    ) -> list[str]:
        """Wait until the process has printed this word; return the words after it, unquoted.

        Raise ProcessFailedError if it ends first, or prints nothing for ``silence_s``.
        ``while_waiting`` is called often.
        """
        reports, heard_s = 0, time.monotonic()
        while True:
            has_ended = self.exit_code is not None
            lines = self._lines()
            for line in lines:
                word, _, rest = line.partition(" ")
                if word == awaited:
                    return shlex.split(rest)
            if has_ended:
                raise self.failure()
            now = time.monotonic()
            if len(lines) > reports:
                reports, heard_s = len(lines), now
            if now > heard_s + silence_s:
                raise ProcessFailedError(
                    f"{self.name} has neither become ready nor reported that it is loading for "
                    f"{silence_s:g} s; expected a report each second. If this host is that busy, "
                    f"allow more with --start-timeout (log: {self.log})"
                )
            while_waiting()
            time.sleep(0.01)

    @property
    def listens_as_standby(self) -> list[str] | None:
        """The addresses of a standby while it follows a run; None before, and afterwards."""
        said = self.printed(STANDBY)
        return shlex.split(said[-1]) if said and not self.printed(READY) else None

    @property
    def is_loading(self) -> str:
        """What the process is loading; "" once it is ready, and before its first report."""
        word, _, rest = (self._lines() or [""])[-1].partition(" ")
        return rest if word == LOADING else ""

    def require_running(self) -> None:
        if self.exit_code is not None:
            raise self.failure()

    def failure(self) -> ProcessFailedError:
        """Return an error with the reason of its end, and with the exit code of bad input."""
        error = ProcessFailedError(f"{self.name}: {self.last_words} (log: {self.log})")
        if self.exit_code == BadInputError.exit_code:
            error.exit_code = BadInputError.exit_code
        return error

    @property
    def has_died(self) -> bool:
        """Whether it has ended without code 0 and without printing a reason."""
        return self.exit_code not in (None, 0) and not self.printed(FAILED)

    @property
    def is_lost(self) -> bool:
        return bool(getattr(self._process, "lost", ""))

    @property
    def waits_for_room(self) -> bool:
        return getattr(self._process, "waits", False)

    @property
    def last_words(self) -> str:
        if reasons := self.printed(FAILED):
            return reasons[-1]
        return getattr(self._process, "lost", "") or f"it ended with code {self.exit_code}"

    def printed(self, word: str) -> list[str]:
        """Return the rest of each line that begins with this word."""
        lines = (line.partition(" ") for line in self._lines())
        return [rest.strip() for first, _, rest in lines if first == word]

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; return False on a timeout."""
        deadline = time.monotonic() + timeout_s
        while self.exit_code is None and time.monotonic() < deadline:
            time.sleep(EXIT_POLL_S)
        return self.exit_code is not None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self.kill_soon()
        self.wait(math.inf)

    def kill_soon(self) -> None:
        """Kill it by its handle: never another process that has its id by now."""
        self._process.kill()

    def _lines(self) -> list[str]:
        # The last line may be half written: with PYTHONUNBUFFERED each word is a write.
        try:
            complete, _, _ = self.said.read_text().rpartition("\n")
        except OSError:  # it was removed, or no descriptor is free
            return []
        return complete.splitlines()


class Child(RunningChild):
    """``python -m MODULE ARGUMENTS...``, with its output in files.

    Its own process group keeps interrupts of the terminal from it: the parent ends its children in
    order. ``words`` replace the arguments of ``spec``; tokens in them are hidden from the command
    line. ``stdin``: its standard input, by default empty.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        logs: Path,
        words: Sequence[str] | None = None,
        stdin: socket.socket | None = None,
    ) -> None:
        words, pipes = hide_tokens(spec.words({}) if words is None else words)
        try:
            with outputs(spec.name, logs) as (output, errors):
                process = subprocess.Popen(
                    [*python_with(spec.bits), "-P", "-m", spec.module, *words],
                    stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
                    stdout=output,
                    stderr=errors,
                    process_group=0,
                    pass_fds=(*spec.inherited, *pipes),
                )
        finally:
            for pipe in pipes:
                os.close(pipe)
        super().__init__(spec.name, logs, process)


def end(children: Sequence[RunningChild], grace_s: float) -> None:
    """Wait for the children to end; kill the rest after ``grace_s``, or on a second interrupt."""
    deadline = time.monotonic() + grace_s
    try:
        while any(child.exit_code is None for child in children):
            if hurry.is_set() or time.monotonic() >= deadline:
                break
            time.sleep(EXIT_POLL_S)
    finally:
        for child in children:
            if child.exit_code is None:
                child.kill()


def parent_option() -> tuple[str, str]:
    return "--parent", str(os.getpid())


class LocalProcesses:
    """A context that starts processes on this host; their output goes to files in ``logs``.

    ``RayCluster`` starts them on nodes with free CPUs instead. ``server_options`` and
    ``worker_options``: the arguments with the server's addresses. ``key_directory``: keys created
    for the cluster; ``keys``: those of this process. No process outlives the context.
    """

    server_options: Sequence[Word] = (Given.SERVER,)
    worker_options: Sequence[Word] = ("--connect", Given.SERVER)
    key_directory: Path | None = None
    keys: PeerKeys | None = None

    def __init__(self, logs: Path, run_directory: Path | None = None) -> None:
        self._logs = logs
        self._run_directory = run_directory
        self._stack = ExitStack()
        self._address = ""
        self._directory = Path()

    def __enter__(self) -> Self:
        self._directory = self._stack.enter_context(temporary_directory())
        self._address = f"ipc://{self._directory}/server"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def poll(self) -> float:
        """Look after the launcher's own processes; return the seconds until the next call."""
        return POLL_S

    @property
    def address(self) -> str:
        """The address at which this process reaches the newest server."""
        return self._address

    def announce(self, addresses: Sequence[str], keys: Path) -> None:
        """Let ``dist-net status`` find these keys by an address of the server."""
        announce(self._directory, addresses, keys)

    def start(self, spec: ProcessSpec) -> RunningChild:
        """Start a process; on Ray, it may wait for a free CPU."""
        given = {Given.RUN_DIRECTORY: str(self._run_directory), Given.SERVER: self.address}
        words = [*parent_option(), *spec.words(given)]
        return Child(spec, self._logs, words)

    def cores_each(self, workers: int) -> int:
        """Return the number of cores per worker, without the server's core; at least 1.

        On Ray, raise SettingError if there are too few.
        """
        return max(1, (available_cores() - 1) // max(1, workers))

    def room(self) -> int:
        """Return the number of workers, of one core each, that could be started now."""
        return 0
