"""How the gateway handles a silent fork server."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.processes.fork_server import ForkServer, _Order


@pytest.mark.parametrize("says", [b"123", None])
def test_a_fork_server_is_killed_only_if_it_has_sent_no_message(
    says: bytes | None, tmp_path: Path
) -> None:
    born: list[Any] = []
    killed: list[bool] = []
    forks = ForkServer("forks", "module", tmp_path)
    child: Any = SimpleNamespace(kill=lambda: killed.append(True), exit_code=None)
    order = _Order("worker", (), born.append)
    forks._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forks._socket.setblocking(False)
    forks._orders.append(order)
    with forks._socket, its:
        if says is not None:
            its.send(says)  # while the gateway was stopped, so that its timer came first
        forks._kill_if_silent(order, child)
    assert [each.process_id for each in born] == ([123] if says else [])
    assert killed == ([] if says else [True])
