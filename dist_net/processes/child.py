"""A started process of the cluster: waiting until it is ready, its output, its end."""

import contextlib
import math
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from dist_net.errors import BadInputError, ProcessFailedError
from dist_net.processes.entry import FAILED, LOADING, READY, STANDBY
from dist_net.processes.kernels import FAST, python_with
from dist_net.processes.token_arguments import hide_tokens

POLL_S = 0.005

hurry = threading.Event()
"""Set by a second interrupt: kill processes instead of waiting for them to end."""


class Process(Protocol):
    """The methods of ``Popen`` in use."""

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
    """A process with the output files of ``outputs``."""

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
        """Where it listens while it follows a run of another host; None before, and afterwards."""
        said = self.printed(STANDBY)
        return shlex.split(said[-1]) if said and not self.printed(READY) else None

    @property
    def is_loading(self) -> str:
        """What the process is loading; "" once it is ready, and before its first report."""
        word, _, rest = (self._lines() or [""])[-1].partition(" ")
        return rest if word == LOADING else ""

    def require_running(self) -> None:
        """Raise ProcessFailedError if it has ended."""
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
        """Whether it has ended with its host."""
        return bool(getattr(self._process, "lost", ""))

    @property
    def waits_for_room(self) -> bool:
        """Whether it waits for a free CPU of the cluster."""
        return getattr(self._process, "waits", False)

    @property
    def last_words(self) -> str:
        """The reason that it printed, else its exit code."""
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
            time.sleep(POLL_S)
        return self.exit_code is not None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        """Kill it, and wait for its end."""
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
    order. ``stdin``: its standard input, by default empty. ``inherited``: file descriptors that it
    inherits. ``bits``: see ``kernels``. Tokens are hidden from its command line.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        logs: Path,
        *,
        stdin: socket.socket | None = None,
        inherited: Sequence[int] = (),
        bits: str = FAST,
    ) -> None:
        words, pipes = hide_tokens(arguments)
        try:
            with outputs(name, logs) as (output, errors):
                process = subprocess.Popen(
                    [*python_with(bits), "-P", "-m", module, *words],
                    stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
                    stdout=output,
                    stderr=errors,
                    process_group=0,
                    pass_fds=(*inherited, *pipes),
                )
        finally:
            for pipe in pipes:
                os.close(pipe)
        super().__init__(name, logs, process)


def end(children: Sequence[RunningChild], grace_s: float) -> None:
    """Wait for the children to end; kill the rest after ``grace_s``, or on a second interrupt."""
    deadline = time.monotonic() + grace_s
    try:
        while any(child.exit_code is None for child in children):
            if hurry.is_set() or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
    finally:
        for child in children:
            if child.exit_code is None:
                child.kill()
