"""Channels between a server and workers of its host: real sockets, in one process."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from dist_net.errors import NoAnswerError
from dist_net.training.run.in_process import LocalCluster
from dist_net.wire import local_channel
from dist_net.wire.local_channel import MAX_PACKET_BYTES, LocalChannel, LocalServerSocket
from dist_net.wire.messages import Alive, Heartbeat, Message, Refuse, Shutdown, SnapshotRequest
from dist_net.wire.transport import ClientSocket

DEADLINE_S = 60.0
BEAT = Heartbeat(7, 1, 0.5)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/server"


@pytest.fixture
def server(address: str) -> Iterator[LocalServerSocket]:
    with LocalServerSocket([address]) as server:
        yield server


@pytest.fixture
def channel(server: LocalServerSocket, address: str) -> Iterator[LocalChannel]:  # noqa: ARG001
    channel = LocalChannel(address)
    yield channel
    channel.close()


def received(server: LocalServerSocket) -> tuple[bytes, Message]:
    """The next message; also when something else wakes the server first."""
    for _ in range(10):
        if (message := server.receive(DEADLINE_S)) is not None:
            return message
    pytest.fail("no message came")


def raw_channel(address: str) -> socket.socket:
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stranger.settimeout(DEADLINE_S)
    stranger.connect(f"{address.removeprefix('ipc://')}.channel")
    return stranger


def test_messages_travel_both_ways(server: LocalServerSocket, channel: LocalChannel) -> None:
    assert channel.receive(0) is None
    channel.send(BEAT)
    node, message = received(server)
    assert message == BEAT
    assert server.send(node, Alive(0.5))
    assert channel.receive(DEADLINE_S) == Alive(0.5)


def test_a_channel_and_zeromq_are_served_in_turn(
    server: LocalServerSocket, channel: LocalChannel, address: str
) -> None:
    with ClientSocket(address) as other:
        for _ in range(20):
            channel.send(BEAT)
        other.send(Shutdown("over ZeroMQ"))
        came = [received(server) for _ in range(21)]
        (node,) = [node for node, message in came if isinstance(message, Shutdown)]
        assert server.send(node, Refuse("answered", False))
        assert other.receive(DEADLINE_S) == Refuse("answered", False)


def test_a_flood_through_zeromq_keeps_no_channel_waiting(
    server: LocalServerSocket, channel: LocalChannel, address: str
) -> None:
    with ClientSocket(address) as other:
        for _ in range(50):
            other.send(Shutdown("over ZeroMQ"))
        assert isinstance(received(server)[1], Shutdown)
        channel.send(BEAT)
        assert BEAT in [received(server)[1] for _ in range(4)]


def test_the_end_of_the_server_invites_to_join_again(address: str) -> None:
    with LocalServerSocket([address]) as server:
        channel = LocalChannel(address)
        channel.send(BEAT)
        received(server)
    answer = channel.receive(DEADLINE_S)
    assert isinstance(answer, Refuse)
    assert answer.may_rejoin
    channel.send(BEAT)  # into the void, without an error
    channel.close()


def test_a_closed_channel_takes_no_message_and_its_node_is_never_given_again(
    server: LocalServerSocket, channel: LocalChannel, address: str
) -> None:
    channel.send(BEAT)
    node, _ = received(server)
    channel.close()
    assert server.receive(0.1) is None
    assert not server.send(node, Alive(0.5))
    again = LocalChannel(address)
    again.send(BEAT)
    assert received(server)[0] != node
    again.close()


@pytest.mark.parametrize("packet", [b"no message", b"\xc0" * (MAX_PACKET_BYTES + 1)])
def test_a_packet_that_is_no_message_is_refused(
    server: LocalServerSocket, address: str, packet: bytes
) -> None:
    with raw_channel(address) as stranger:
        stranger.send(packet)
        assert server.receive(DEADLINE_S) is None
        assert server.receive(0.1) is None
        assert b"Refuse" in stranger.recv(MAX_PACKET_BYTES)


def test_arrays_do_not_travel_by_a_channel(
    cluster: Callable[..., AbstractContextManager[LocalCluster]], tmp_path: Path
) -> None:
    with cluster(listen=f"ipc://{tmp_path}/server") as running:
        channel = LocalChannel(running.address)
        channel.send(SnapshotRequest())
        answer = channel.receive(DEADLINE_S)
        channel.close()
        assert isinstance(answer, Refuse)


def test_a_peer_that_reads_nothing_costs_the_server_nothing(
    server: LocalServerSocket, address: str
) -> None:
    with raw_channel(address) as stranger:
        stranger.send(b"no message")
        assert server.receive(DEADLINE_S) is None
        assert server.receive(0.1) is None
        (node,) = server._channels
        while server.send(node, Refuse("x" * 4000, may_rejoin=False)):
            pass


def test_there_are_so_many_channels_and_no_more(
    server: LocalServerSocket, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_channel, "MAX_CHANNELS", 2)
    channels = [LocalChannel(address) for _ in range(3)]
    for _ in range(3):
        assert server.receive(0.1) is None
    channels[0].send(BEAT)
    assert received(server)[1] == BEAT
    assert isinstance(channels[2].receive(DEADLINE_S), Refuse)
    for channel in channels:
        channel.close()


def test_a_server_that_accepts_and_reads_nothing_keeps_no_worker_waiting(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_channel, "CONNECT_TIMEOUT_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stopped:
        stopped.bind(f"{tmp_path}/server.channel")
        stopped.listen(0)
        channel = LocalChannel(address)
        with pytest.raises(OSError):  # noqa: PT011 - the backlog is full
            LocalChannel(address)
        with pytest.raises(NoAnswerError, match=address):
            any(map(channel.send, repeat(BEAT)))  # until its buffer is full
        channel.close()


def test_what_a_killed_server_left_behind_is_replaced(address: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(f"{tmp_path}/server.channel")
    with LocalServerSocket([address]) as server:
        channel = LocalChannel(address)
        channel.send(BEAT)
        assert received(server)[1] == BEAT
        channel.close()
    assert not [*tmp_path.iterdir()]


def test_without_a_channel_a_server_is_served_by_zeromq(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server.channel").mkdir()
    with LocalServerSocket([address]) as server, ClientSocket(address) as client:
        assert "channels_unavailable" in caplog.text
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            LocalChannel(address)
        client.send(BEAT)
        assert received(server)[1] == BEAT


@pytest.mark.parametrize("shares_memory", [True, False])
def test_workers_that_share_memory_use_channels(
    cluster: Callable[..., AbstractContextManager[LocalCluster]],
    assert_exact: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shares_memory: bool,
) -> None:
    opened: list[str] = []

    class Counted(LocalChannel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            opened.append(arguments[0])

    monkeypatch.setattr("dist_net.training.worker.loop.LocalChannel", Counted)
    with cluster(listen=f"ipc://{tmp_path}/server") as running:
        for _ in range(2):
            running.start_worker(shares_memory=shares_memory)
        running.wait()
        assert_exact(running.snapshot().weights)
    assert len(opened) == 2 * shares_memory
