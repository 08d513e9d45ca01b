"""Specifications of a cluster's processes, and the launcher of this host, which starts them.

The processes are parameter servers, workers and inference workers. ``Supervisor`` starts them
through a launcher. Exit codes and output of a process mean:

    code 0                 its work is done
    FAILED and a reason    another start would end likewise: bad input, a run that is over
    any other end          it died; another start may succeed
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Self

from dist_net.processes.child import Child, RunningChild
from dist_net.processes.cores import available_cores
from dist_net.processes.kernels import FAST
from dist_net.processes.own_directory import announce, temporary_directory
from dist_net.wire.security import PeerKeys

POLL_S = 0.1


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
    ``bits``: see ``kernels``.
    """

    name: str
    module: str
    arguments: tuple[Word, ...]
    cores: int = 1
    is_server: bool = False
    inherited: tuple[int, ...] = ()
    bits: str = FAST

    def words(self, given: Mapping[Given, str]) -> list[str]:
        """Return the arguments, with the values for each ``Given``."""
        return [given[word] if isinstance(word, Given) else word for word in self.arguments]


def parent_option() -> tuple[str, str]:
    """Return the option by which a started process ends with this one."""
    return "--parent", str(os.getpid())


def share_of_cores(workers: int) -> int:
    """Return the cores per worker of this host, without the server's core; at least 1."""
    return max(1, (available_cores() - 1) // max(1, workers))


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
        return Child(
            spec.name, spec.module, words, self._logs, inherited=spec.inherited, bits=spec.bits
        )

    def cores_each(self, workers: int) -> int:
        """Return the number of cores per worker. Raise SettingError if there are too few."""
        return share_of_cores(workers)

    def room(self) -> int:
        """Return the number of workers, of one core each, that could be started now."""
        return 0
