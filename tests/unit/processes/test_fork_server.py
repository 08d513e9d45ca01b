"""How the gateway handles a silent fork server."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.processes.fork_server import ForkingProcesses
from dist_net.processes.launcher import ProcessSpec


@pytest.mark.parametrize("says", [b"123", None])
def test_a_fork_server_is_killed_only_if_it_has_sent_no_message(
    says: bytes | None, tmp_path: Path
) -> None:
    killed: list[bool] = []
    forks: Any = ForkingProcesses("module", tmp_path)
    process = forks.start(ProcessSpec("worker", "module", ()))  # waits for a fork server
    forks._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forks._socket.setblocking(False)
    forks._child = SimpleNamespace(kill=lambda: killed.append(True), exit_code=None)
    forks._answer_by_s = 0.0  # this process was stopped meanwhile
    with forks._socket, its:
        if says is not None:
            its.send(says)
        forks.receive()
    assert process.process_id == (123 if says else -1)
    assert killed == ([] if says else [True])
