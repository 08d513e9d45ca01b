"""A process of the cluster that this one started: until it is ready, while it runs, how it ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from dist_net.errors import BadInputError, ProcessFailedError
from dist_net.processes.entry import FAILED, LOADING, READY
from dist_net.processes.hidden_tokens import hide_tokens

POLL_S = 0.005

hurry = threading.Event()
"""Set when a second interrupt came from a user who will not wait for processes to end in order."""


class Process(Protocol):
    """The methods of ``Popen`` in use."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def output_files(name: str, logs: Path) -> tuple[Path, Path]:
    """The files for a process's stdout, which is read by who started it, and for its log."""
    return logs / f"{name}.out", logs / f"{name}.log"


@contextlib.contextmanager
def outputs(name: str, logs: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """Those files, open; what was printed before is gone, what was logged is kept."""
    said, log = output_files(name, logs)
    logs.mkdir(parents=True, exist_ok=True)  # it may have been removed
    with said.open("w") as output, log.open("a") as errors:
        yield output, errors


class RunningChild:
    """A process whose stdout and stderr are in the files that ``outputs`` gives."""

    def __init__(self, name: str, logs: Path, process: Process) -> None:
        self.name = name
        self.said, self.log = output_files(name, logs)
        self._process = process

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def host(self) -> str:
        """The name of the host that it runs on."""
        return getattr(self._process, "host", socket.gethostname())

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def wait_until_ready(
        self, silence_s: float, while_waiting: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Return the words after READY, once the process has printed that.

        They are quoted for a shell. Raise ProcessFailedError if it ends before, or reports for
        longer than ``silence_s`` not even that it is loading. ``while_waiting`` is called often.
        """
        reports, heard_s = 0, time.monotonic()
        while True:
            has_ended = self.exit_code is not None
            lines = self._lines()
            for line in lines:
                word, _, rest = line.partition(" ")
                if word == READY:
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
    def is_loading(self) -> str:
        """What the process reports to load, until it is ready; "" at any other time."""
        word, _, rest = (self._lines() or [""])[-1].partition(" ")
        return rest if word == LOADING else ""

    def require_running(self) -> None:
        """Raises ProcessFailedError if it has ended."""
        if self.exit_code is not None:
            raise self.failure()

    def failure(self) -> ProcessFailedError:
        """The error that says why it ended, with its exit code if that is bad input's."""
        error = ProcessFailedError(f"{self.name}: {self.last_words} (log: {self.log})")
        if self.exit_code == BadInputError.exit_code:
            error.exit_code = BadInputError.exit_code
        return error

    @property
    def has_died(self) -> bool:
        """Whether it has ended, neither because its work was done nor for a reason that it gave."""
        return self.exit_code not in (None, 0) and not self.has_said_why

    @property
    def has_said_why(self) -> bool:
        """Whether it printed why it ended; else it was killed, or ended by a fault in the code."""
        return bool(self._reasons())

    @property
    def is_lost(self) -> bool:
        """Whether it has ended because the host that it ran on is gone."""
        return bool(getattr(self._process, "lost", ""))

    @property
    def waits_for_room(self) -> bool:
        """Whether it has not begun, since there is no room for it in the cluster."""
        return getattr(self._process, "waits", False)

    @property
    def last_words(self) -> str:
        """Why it ended, as it printed it, else its exit code."""
        reasons = self._reasons()
        if reasons:
            return reasons[-1].strip()
        return getattr(self._process, "lost", "") or f"it ended with code {self.exit_code}"

    def _reasons(self) -> list[str]:
        return [line.removeprefix(FAILED) for line in self._lines() if line.startswith(FAILED)]

    def wait(self, timeout_s: float) -> bool:
        """Waits until it has ended; False if it has not in that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.exit_code is not None

    def terminate(self) -> None:
        """Sends SIGTERM, if it runs."""
        self._process.terminate()

    def kill(self) -> None:
        """Kills it, and waits until it is gone."""
        self._process.kill()
        self._process.wait()

    def _lines(self) -> list[str]:
        # The last line may be half written: with PYTHONUNBUFFERED each word is a write.
        try:
            complete, _, _ = self.said.read_text().rpartition("\n")
        except OSError:  # it was removed, or no descriptor is free
            return []
        return complete.splitlines()


class Child(RunningChild):
    """``python -m MODULE ARGUMENTS...``, whose stdout and stderr go to files.

    It has a process group of its own, so that an interrupt at the terminal reaches only the
    parent, which then ends its children in order. ``stdin`` is what it has there, else nothing. It
    inherits the file descriptors ``inherited``, and no token shows on its command line.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        logs: Path,
        stdin: socket.socket | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        words, pipes = hide_tokens(arguments)
        try:
            with outputs(name, logs) as (output, errors):
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *words],
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
    """Waits for the children to end; kills those that run after ``grace_s``, or on an interrupt."""
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
