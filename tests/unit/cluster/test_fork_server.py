"""What the gateway makes of its fork server's silence."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.cluster.fork_server import ForkServer, _Order


@pytest.mark.parametrize("says", [b"123", None])
def test_a_fork_server_is_given_up_only_if_it_has_said_nothing(
    says: bytes | None, tmp_path: Path
) -> None:
    born: list[Any] = []
    killed: list[bool] = []
    forks = ForkServer("forks", "module", tmp_path)
    forks._child = SimpleNamespace(kill=lambda: killed.append(True))  # type: ignore[assignment]
    forks._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forks._socket.setblocking(False)
    forks._orders.append(_Order("worker", (), born.append))
    with forks._socket, its:
        if says is not None:
            its.send(says)  # while the gateway was stopped, so that its timer came first
        forks._give_up()
    assert [each.process_id for each in born] == ([123] if says else [])
    assert killed == ([] if says else [True])
