"""What an actor of Ray does for a role: it starts the role's process on its node, and watches it.

No array passes here: the process talks to others by messages of our own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from dist_net.errors import RunDirectoryError
from dist_net.processes import sheltered
from dist_net.processes.child import RunningChild, outputs
from dist_net.processes.own_directory import temporary_directory
from dist_net.processes.roles import Given, Role, parent_option

POLL_S = 0.01  # growing, while nothing happens, up to
MAX_POLL_S = 0.1
MAX_WATCH_S = 10.0
MAX_SAID_BYTES = 1 << 20  # in one answer
KEYS = "keys"
RUN = "run"


class SharedRun(NamedTuple):
    """A run directory, which a node has if it finds this file there with this in it."""

    path: str
    file: str
    content: str

    def is_seen(self) -> bool:
        with suppress(OSError):
            return (Path(self.path) / self.file).read_text() == self.content
        return False


class ServerPlace(NamedTuple):
    """Where the cluster's server is: its node, and its addresses there and for others."""

    node: str
    near: str
    beyond: str


class Seen(NamedTuple):
    """What a process has printed and logged since the last time, and its exit code once it has
    ended and all is told.

    ``is_shortened``: its log was, meanwhile, and ``logged`` is what it begins with now.
    """

    said: bytes
    logged: bytes
    is_shortened: bool
    exit_code: int | None
    process_id: int
    host: str


def tcp_address(host: str, port: int) -> str:
    """An address of ours for a host's number."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class RoleKeeper:
    """Keeps one role on the node ``node`` at the address ``host``.

    ``files``, by path, are put into a private directory there. ``watch`` may run while other
    methods do.
    """

    def __init__(self, node: str, host: str, files: Mapping[str, bytes]) -> None:
        self._node = node
        self._host = host
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(temporary_directory())
        for name, content in files.items():
            path = self._directory / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(content)

    def place_server(self) -> ServerPlace:
        """Chooses where a server here listens. Nobody else gets its port: this process holds it,
        though it does not listen."""
        held = self._stack.enter_context(socket.socket(_family(self._host)))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does
        held.bind((self._host, 0))
        beyond = tcp_address(self._host, held.getsockname()[1])
        return ServerPlace(self._node, f"ipc://{self._directory}/server", beyond)

    def start(self, role: Role, server: ServerPlace, run: SharedRun | None) -> Seen:
        """Starts the role's process.

        Raises RunDirectoryError if it is to write to a run directory that this node does not see.
        """
        is_seen = run is not None and run.is_seen()
        if role.is_server and run is not None and not is_seen:
            raise RunDirectoryError(
                f"the run directory {run.path} is not seen on the node {self._host}, where the "
                f"parameter server was placed; expected storage that all nodes see, or a free CPU "
                f"on the node of this command"
            )
        given = {
            Given.SERVER: server.near if server.node == self._node else server.beyond,
            Given.SERVER_BEYOND: server.beyond,
            Given.KEYS: str(self._directory / KEYS),
            Given.RUN_DIRECTORY: run.path if run and is_seen else str(self._directory / RUN),
        }
        self._role = role
        self._offsets = [0, 0]
        with outputs(role.name, self._directory) as (output, errors):
            process = subprocess.Popen(
                [*_command(role), *role.words(given)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                process_group=0,
            )
        self._process = process
        self._child = RunningChild(role.name, self._directory, process)
        return self._seen()

    def watch(self) -> Seen:
        """Waits until there is something new of the process, or a while."""
        deadline, pause_s = time.monotonic() + MAX_WATCH_S, POLL_S
        while True:
            exit_code = self._child.exit_code
            said, _ = self._new(0, self._child.said)
            logged, is_shortened = self._new(1, self._child.log)
            if said or logged:
                return self._seen(said, logged, is_shortened)
            if exit_code is not None:
                if not self._role.is_server:
                    self.close()
                return self._seen(exit_code=exit_code)
            if time.monotonic() > deadline:
                return self._seen()
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, MAX_POLL_S)

    def _seen(
        self,
        said: bytes = b"",
        logged: bytes = b"",
        is_shortened: bool = False,
        exit_code: int | None = None,
    ) -> Seen:
        host = socket.gethostname()
        return Seen(said, logged, is_shortened, exit_code, self._process.pid, host)

    def signal(self, number: int) -> None:
        """Sends a signal to the process; SIGKILL to what it has started, too."""
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def close(self) -> None:
        """Removes the private directory."""
        self._stack.close()

    def _new(self, which: int, file: Path) -> tuple[bytes, bool]:
        """What is new in a file, and whether it was shortened, so that all there is is new."""
        is_shortened = file.stat().st_size < self._offsets[which]
        if is_shortened:
            self._offsets[which] = 0
        with file.open("rb") as opened:
            opened.seek(self._offsets[which])
            content = opened.read(MAX_SAID_BYTES)
        self._offsets[which] += len(content)
        return content, is_shortened


class RoleActor(RoleKeeper):
    """That, as an actor: it asks Ray where it is."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        super().__init__(node, ray.util.get_node_ip_address(), files)


def _command(role: Role) -> list[str]:
    """Ray kills an actor's children with it: a server has one more process between, so that it can
    write what it has."""
    if role.is_server:
        return [sys.executable, "-P", sheltered.__file__, role.module]
    return [sys.executable, "-P", "-m", role.module, *parent_option()]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
