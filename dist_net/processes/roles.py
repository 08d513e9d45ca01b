"""The one interface of supervision: what a cluster's processes are, and who starts them.

A role is a process of this project: a parameter server, a worker, a gateway, a model loader, an
inference worker. Who runs a cluster has a `Launcher` start its roles, watches what that gives,
restarts what has died (see ``Supervisor``), and ends them. How a role's process ends says what
that means:

    code 0                      its work is done
    it has said why (FAILED)    another start would end the same: bad input, a run that is over
    anything else               it died: another start may do better
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol, Self

from dist_net.processes.child import Child, RunningChild
from dist_net.processes.cores import available_cores
from dist_net.processes.own_directory import temporary_directory
from dist_net.wire.security import PeerKeys

POLL_S = 0.1


class Given(Enum):
    """A word of a role's arguments that depends on where it is started."""

    RUN_DIRECTORY = auto()
    SERVER = auto()  # the address of the cluster's server: a Unix socket's on the server's host
    SERVER_BEYOND = auto()  # that for other hosts
    KEYS = auto()


Word = str | Given


@dataclass(frozen=True)
class Role:
    """``python -m MODULE --parent PROCESS_ID ARGUMENTS...``, by a name for logs and people.

    It ends when its parent, the process that starts it, has ended.

    Without a module it is forked by a pool's fork server. ``cores``: how many it keeps busy.
    ``is_server``: others connect to it, and it writes what it has when it is ended; of a cluster
    there is one. ``inherited``: file descriptors that it holds too, if it is this host's.
    """

    name: str
    module: str
    arguments: tuple[Word, ...]
    cores: int = 1
    is_server: bool = False
    inherited: tuple[int, ...] = ()

    def words(self, given: Mapping[Given, str]) -> list[str]:
        """The arguments at a place."""
        return [given[word] if isinstance(word, Given) else word for word in self.arguments]


def parent_option() -> tuple[str, str]:
    """Says to a process that this one starts without which one it ends."""
    return "--parent", str(os.getpid())


class Launcher(Protocol):
    """A context in which processes are started: on this host, or where there is room in a cluster.

    ``server_options`` and ``worker_options`` say to a server where it listens, and to a worker
    where that is. ``key_directory`` has keys that were made for it. No process outlives the
    context. ``poll_s``: how often to look whether a process has ended.
    """

    @property
    def poll_s(self) -> float: ...

    server_options: Sequence[Word]
    worker_options: Sequence[Word]
    key_directory: Path | None

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, role: Role) -> RunningChild:
        """Starts a role's process; may return before there is room for it."""
        ...

    @property
    def address(self) -> str:
        """Where this process reaches the server that was started last."""
        ...

    @property
    def keys(self) -> PeerKeys | None:
        """Those that this process needs there."""
        ...

    def cores_each(self, workers: int) -> int:
        """How many cores each of so many workers gets; raises SettingError if there are too few."""
        ...

    def room(self) -> int:
        """How many more workers, of one core each, there is room for now."""
        ...


def share_of_cores(workers: int) -> int:
    """How many cores each of this host's workers gets: less one for the server, at least 1."""
    return max(1, (available_cores() - 1) // max(1, workers))


class LocalProcesses:
    """A launcher of children of this process, whose outputs go to files in ``logs``."""

    server_options: Sequence[Word] = (Given.SERVER,)
    worker_options: Sequence[Word] = ("--connect", Given.SERVER)
    key_directory: Path | None = None
    keys = None

    @property
    def poll_s(self) -> float:
        return POLL_S

    def __init__(self, logs: Path, run_directory: Path | None = None) -> None:
        self._logs = logs
        self._run_directory = run_directory
        self._stack = ExitStack()
        self.address = ""

    def __enter__(self) -> Self:
        self.address = f"ipc://{self._stack.enter_context(temporary_directory())}/server"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, role: Role) -> RunningChild:
        given = {
            Given.RUN_DIRECTORY: str(self._run_directory),
            Given.SERVER: self.address,
        }
        words = [*parent_option(), *role.words(given)]
        return Child(role.name, role.module, words, self._logs, inherited=role.inherited)

    def cores_each(self, workers: int) -> int:
        return share_of_cores(workers)

    def room(self) -> int:
        return 0
