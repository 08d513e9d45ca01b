"""The one interface of supervision: what a cluster's processes are, and who starts them.

A role is a process of this project: a parameter server, a worker, a gateway, a model loader, an
inference worker. Who runs a cluster has a `Launcher` start its roles, watches what that gives,
starts again what has died (see ``replacement``), and ends them. How a role's process ends says what
that means:

    code 0                      its work is done
    it has said why (FAILED)    another start would end the same: bad input, a run that is over
    anything else               it died: another start may do better
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dist_net.cluster.child import Child, RunningChild


@dataclass(frozen=True)
class Role:
    """``python -m MODULE ARGUMENTS...``, by a name for logs and people.

    Without a module it is forked by a pool's fork server. ``inherited``: file descriptors that it
    holds too, where it runs on this host.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    inherited: tuple[int, ...] = ()


class Launcher(Protocol):
    """Starts processes: on this host, or wherever there is room in a cluster."""

    def start(self, role: Role) -> RunningChild:
        """Starts a role's process."""
        ...


class LocalProcesses:
    """A launcher of children of this process, whose outputs go to files in ``logs``."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs

    def start(self, role: Role) -> Child:
        return Child(role.name, role.module, role.arguments, self._logs, inherited=role.inherited)
