"""A real Ray cluster of several nodes on this host, in a process of its own.

    python ray_nodes.py TEMPORARY_DIRECTORY HEAD_CPUS

On stdin come ``add CPUS``, ``remove NODE`` and ``kill NODE``, a line each; the answer to each is a
line on stdout: the new node's id, or nothing. The first line there is the cluster's address.
Commands connect to the head node. A node that is killed has no time to say so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

ENDS_WITHIN_S = 60.0


class RayNodes:
    """A context with that process."""

    def __init__(self, head_cpus: int = 0) -> None:
        self._temporary = tempfile.mkdtemp(prefix="ray")  # short: sockets lie below
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, self._temporary, str(head_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        self.address = self._answers.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.wait(ENDS_WITHIN_S)
        self._answers.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def process_id(self) -> int:
        """The process that started all nodes."""
        return self._process.pid

    def add(self, cpus: int) -> str:
        """Gives the new node's id."""
        return self._order(f"add {cpus}")

    def remove(self, node: str) -> None:
        self._order(f"remove {node}")

    def kill(self, node: str) -> None:
        self._order(f"kill {node}")

    def _order(self, line: str) -> str:
        print(line, file=self._orders, flush=True)
        return self._answers.readline().strip()


def main(temporary: str, head_cpus: int) -> None:
    """Carries out orders until there are no more."""
    from ray.cluster_utils import Cluster

    # Ray writes the cluster's address there, whatever its own directory, and does not create it.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    # A node exits if its agents take longer than this to start, as they may on a busy machine.
    patience = {"agent_register_timeout_ms": 600_000}
    head = {
        "num_cpus": head_cpus,
        "include_dashboard": False,
        "temp_dir": temporary,
        "_system_config": patience,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    print(cluster.address, flush=True)
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        command, argument = line.split()
        if command == "add":
            node = cluster.add_node(num_cpus=int(argument))
            nodes[node.node_id] = node
            print(node.node_id, flush=True)
        else:
            cluster.remove_node(nodes.pop(argument), allow_graceful=command == "remove")
            print(flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
