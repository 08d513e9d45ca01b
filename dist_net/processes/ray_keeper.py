"""A Ray actor for one process: it starts the process on its node and watches it.

Arrays do not pass through actors: processes exchange them in messages of dist_net.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from dist_net.nets.run_directory import RunDirectory
from dist_net.processes import ray_parent
from dist_net.processes.equipment import python_with
from dist_net.processes.launcher import Given, ProcessSpec, RunningChild, outputs, parent_option
from dist_net.processes.own_directory import temporary_directory
from dist_net.wire.address import bracketed

POLL_S = 0.01  # it grows up to MAX_POLL_S while nothing happens
MAX_POLL_S = 0.1
MAX_WATCH_S = 10.0
MAX_SAID_BYTES = 1 << 20  # of each file in one report
KEYS = "keys"
RUN = "run"


class ServerPlace(NamedTuple):
    """The node of the cluster's server, and its addresses on that node and for other nodes."""

    node: str
    near: str
    beyond: str


class Seen(NamedTuple):
    """A report on a process: its new output and, after the last output, its exit code.

    ``is_shortened``: the log was cut since the last report, and ``logged`` is its whole content.
    ``left``: files by name that a server leaves in a private run directory at its end.
    """

    process_id: int
    host: str
    exit_code: int | None
    said: bytes = b""
    logged: bytes = b""
    is_shortened: bool = False
    left: Mapping[str, bytes] | None = None


def contents(root: Path, *files: Path) -> dict[str, bytes]:
    """Return the contents of those files that exist, or of all, by their path in ``root``."""
    existing = filter(Path.is_file, files or root.iterdir())
    return {str(each.relative_to(root)): each.read_bytes() for each in existing}


class ProcessKeeper:
    """Run one process on the node ``node``, with the IP address ``host``.

    It writes the files of ``keys`` to a private directory. ``watch`` may run beside other methods.
    """

    def __init__(self, node: str, host: str, keys: Mapping[str, bytes]) -> None:
        self._node = node
        self._host = host
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(temporary_directory())
        self._write(KEYS, keys)

    def _write(self, directory: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            path = self._directory / directory / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(content)

    def place_server(self) -> ServerPlace:
        """Choose a server's addresses on this node; keep the port bound, so that it stays free."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        held = self._stack.enter_context(socket.socket(family))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ZeroMQ sets it too
        held.bind((self._host, 0))
        beyond = f"tcp://{bracketed(self._host)}:{held.getsockname()[1]}"
        return ServerPlace(self._node, f"ipc://{self._directory}/server", beyond)

    def start(self, spec: ProcessSpec, server: ServerPlace, run: str | Mapping[str, bytes]) -> Seen:
        """Start the process in the run directory ``run``, or in a private one with these files."""
        self._run = RunDirectory(self._directory / RUN)
        self._is_private = not isinstance(run, str)
        if not isinstance(run, str):
            self._write(RUN, run)
        given = {
            Given.SERVER: server.near if server.node == self._node else server.beyond,
            Given.SERVER_BEYOND: server.beyond,
            Given.KEYS: str(self._directory / KEYS),
            Given.RUN_DIRECTORY: run if isinstance(run, str) else str(self._run.path),
        }
        self._spec = spec
        self._offsets = [0, 0]
        module = ["-m", spec.module, *parent_option()]
        if spec.is_server:
            module = [ray_parent.__file__, spec.module]
        with outputs(spec.name, self._directory) as (output, errors):
            process = subprocess.Popen(
                [*python_with(spec.bits), "-P", *module, *spec.words(given)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                process_group=0,
            )
        self._process = process
        self._child = RunningChild(spec.name, self._directory, process)
        return self._seen()

    def watch(self) -> Seen:
        """Wait for output of the process or its end, at most ``MAX_WATCH_S``."""
        deadline, pause_s = time.monotonic() + MAX_WATCH_S, POLL_S
        while True:
            exit_code = self._child.exit_code
            said, _ = self._new(0, self._child.said)
            logged, is_shortened = self._new(1, self._child.log)
            if said or logged:
                return self._seen(said, logged, is_shortened)
            if exit_code is not None:
                seen = self._seen(exit_code=exit_code)
                if not self._spec.is_server:
                    self.close()
                elif exit_code == 0 and self._is_private:
                    left = self._run.journal, self._run.checkpoint  # in the order to write them
                    seen = seen._replace(left=contents(self._run.path, *left))
                return seen
            if time.monotonic() > deadline:
                return self._seen()
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, MAX_POLL_S)

    def _seen(self, *news: Any, exit_code: int | None = None) -> Seen:
        return Seen(self._process.pid, socket.gethostname(), exit_code, *news)

    def signal(self, number: int) -> None:
        """Send a signal to the process; SIGKILL to its whole process group."""
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def close(self) -> None:
        self._stack.close()

    def _new(self, which: int, file: Path) -> tuple[bytes, bool]:
        """Return the new content of a file, and whether the file was cut, which makes all new."""
        is_shortened = file.stat().st_size < self._offsets[which]
        if is_shortened:
            self._offsets[which] = 0
        with file.open("rb") as opened:
            opened.seek(self._offsets[which])
            content = opened.read(MAX_SAID_BYTES)
        self._offsets[which] += len(content)
        return content, is_shortened


class KeeperActor(ProcessKeeper):
    """``ProcessKeeper`` as a Ray actor, which requests its node from Ray."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        super().__init__(node, ray.util.get_node_ip_address(), keys)
