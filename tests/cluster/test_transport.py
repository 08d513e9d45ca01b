"""Messages over real sockets inside one process, the errors of addresses, and keys."""

import gc
import math
import shutil
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

from dist_net.errors import (
    AccessRefusedError,
    AddressError,
    InsecureAddressError,
    KeyFileError,
    NoAnswerError,
    ProtocolError,
)
from dist_net.wire import connections, security
from dist_net.wire.codec import decode, encode
from dist_net.wire.connections import Contact
from dist_net.wire.invitation import invite, peer_keys_of, revoke
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import (
    Alive,
    Enroll,
    Enrolled,
    Heartbeat,
    Join,
    Push,
    RecipeRequest,
    Refuse,
    Shutdown,
    SnapshotRequest,
    StatusReport,
    StatusRequest,
    Work,
)
from dist_net.wire.security import (
    OPERATOR,
    PeerKeys,
    add_keys,
    admit_only,
    admitted_by,
    create_keys,
    load_peer_keys,
    load_server_keys,
)
from dist_net.wire.serving_messages import JoinPool, ModelPrepared
from dist_net.wire.token import TRAINING
from dist_net.wire.transport import ClientSocket, ServerSocket
from naming import naming

LOOPBACK = "tcp://127.0.0.1:0"
DEADLINE_S = 60.0
# Long enough for an answer, were there one.
SILENCE_S = 0.3
WEIGHTS = np.arange(101_770, dtype=np.float32)


def open_files_and_threads() -> tuple[int, int]:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def open_sockets() -> int:
    """Unlike other files, such as /proc/self/statm, the server's thread opens none in passing."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(each.readlink()))
    return sum(link.startswith("socket:") for link in links)


@pytest.fixture(autouse=True)
def nothing_leaks():
    with zmq.Context():  # what pyzmq opens once and keeps
        pass
    before = open_files_and_threads()
    yield
    assert open_files_and_threads() == before


@pytest.fixture
def server():
    with ServerSocket([LOOPBACK]) as server:
        yield server


@pytest.fixture
def client(server):
    with ClientSocket(server.contact_addresses[0]) as client:
        yield client


@pytest.fixture
def stranger(server):
    """A peer that speaks ZeroMQ, but not this protocol."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.rcvtimeo = int(DEADLINE_S * 1000)
        stranger.connect(server.contact_addresses[0])
        yield stranger


@pytest.fixture
def keys(tmp_path):
    create_keys(tmp_path / "keys")
    add_keys(tmp_path / "keys")
    return tmp_path / "keys"


def exchange(server: ServerSocket, client: ClientSocket) -> None:
    """One request and its reply."""
    client.send(Heartbeat(7))
    received = server.receive(DEADLINE_S)
    assert received is not None
    node, message = received
    assert message == Heartbeat(7)
    assert server.send(node, Alive())
    assert client.receive(DEADLINE_S) == Alive()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def a_push(state):
    return Push(1, 7, 1, 2, 0.0, 0, 0.0, state)


def some_work(state):
    return Work(1, 3, 0, LeaseSteps(0, 32, 64, 6, 32, 32), state)


def test_states_travel_both_ways(server, client):
    client.send(a_push(WEIGHTS))
    node, push = server.receive(DEADLINE_S)
    np.testing.assert_array_equal(push.state, WEIGHTS)
    assert server.send(node, some_work(-push.state))
    np.testing.assert_array_equal(client.receive(DEADLINE_S).state, -WEIGHTS)


def test_a_sent_array_may_be_overwritten_at_once(server, client):
    state = WEIGHTS.copy()
    client.send(a_push(state))
    state[:] = -1
    node, push = server.receive(DEADLINE_S)
    np.testing.assert_array_equal(push.state, WEIGHTS)
    state = WEIGHTS.copy()
    server.send(node, some_work(state))
    state[:] = -1
    np.testing.assert_array_equal(client.receive(DEADLINE_S).state, WEIGHTS)


def test_each_node_gets_its_own_replies(server):
    address = server.contact_addresses[0]
    with ClientSocket(address) as one, ClientSocket(address) as other:
        one.send(Heartbeat(1))
        first = server.receive(DEADLINE_S)
        other.send(Heartbeat(2))
        second = server.receive(DEADLINE_S)
        assert first[0] != second[0]
        server.send(second[0], Alive())
        assert other.receive(DEADLINE_S) == Alive()
        assert one.receive(0) is None


def test_nothing_came_in_time(server, client):
    assert server.receive(0) is None
    assert server.receive(-1.0) is None
    assert client.receive(0.001) is None


@pytest.mark.parametrize("listen", ["tcp://[::1]:0", "ipc://@dist-net-test", "ipc://{tmp}/socket"])
def test_other_kinds_of_address_work(listen, tmp_path):
    if "[::1]" in listen and not has_ipv6():
        pytest.skip("this host has no IPv6")
    with (
        ServerSocket([listen.format(tmp=tmp_path)]) as server,
        ClientSocket(server.contact_addresses[0]) as client,
    ):
        exchange(server, client)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_server_listens_on_several_addresses(tmp_path):
    with ServerSocket([LOOPBACK, f"ipc://{tmp_path}/socket"]) as server:
        tcp, ipc = server.contact_addresses
        assert tcp.startswith("tcp://127.0.0.1:")
        assert ipc == f"ipc://{tmp_path}/socket"
        for address in (tcp, ipc):
            with ClientSocket(address) as client:
                exchange(server, client)
    assert not (tmp_path / "socket").exists()


# Nobody receives what is meant for another


@pytest.mark.parametrize("has_keys", [False, True])
def test_a_peer_that_takes_the_id_of_a_closed_connection_does_not_receive_its_answers(
    keys, has_keys
):
    with ServerSocket([LOOPBACK], load_server_keys(keys) if has_keys else None) as server:
        peer_keys = load_peer_keys(keys) if has_keys else None
        address = server.contact_addresses[0]
        with ClientSocket(address, peer_keys) as victim:
            victim.send(Heartbeat(1))
            node, _ = server.receive(DEADLINE_S)
            routing_id = victim._socket.getsockopt(zmq.ROUTING_ID)
        with ClientSocket(address, peer_keys) as thief:
            thief._socket.disconnect(address)
            thief._socket.setsockopt(zmq.ROUTING_ID, routing_id)
            thief._socket.connect(address)
            thief.send(Heartbeat(2))
            taken, message = server.receive(DEADLINE_S)
            assert message == Heartbeat(2)
            assert taken != node
            assert taken.startswith(routing_id)
            assert not server.send(node, Alive(1.0))
            assert server.send(taken, Alive(2.0))
            assert thief.receive(DEADLINE_S) == Alive(2.0)


def test_every_socket_announces_another_id_of_128_bits(server):
    with ExitStack() as opened:
        sockets = [
            opened.enter_context(ClientSocket(server.contact_addresses[0])) for _ in range(8)
        ]
        ids = {each._socket.getsockopt(zmq.ROUTING_ID) for each in sockets}
    assert {len(each) for each in ids} == {16}
    assert len(ids) == 8


def test_a_key_that_connects_too_often_waits_and_another_does_not(keys, caplog, monkeypatch):
    monkeypatch.setattr(connections, "_ADMISSIONS_AT_ONCE", 2)
    monkeypatch.setattr(connections, "_ADMISSIONS_PER_S", 0.001)
    add_keys(keys, name="other")
    with ServerSocket([LOOPBACK], load_server_keys(keys)) as server, ExitStack() as opened:
        address = server.contact_addresses[0]

        def connected(name):
            return opened.enter_context(ClientSocket(address, load_peer_keys(keys / name)))

        for _ in range(2):
            exchange(server, connected("worker"))
        connected("worker")
        wait_for_log(caplog, "admissions_limited count=1 key=")
        other = connected("other")
        exchange(server, other)


# What is not of this protocol


@pytest.mark.parametrize(
    "frames", [[b""], [b"nonsense"], [b"a"] * 50, [*encode(Alive()), b"more"], [bytes(2**21)]]
)
def test_an_undecodable_message_is_logged_and_answered_and_kills_nobody(
    server, client, stranger, caplog, frames
):
    stranger.send_multipart(frames)
    assert server.receive(DEADLINE_S) is None
    assert "undecodable_message node=" in caplog.text
    refusal = stranger.recv_multipart()
    assert b"Refuse" in refusal[0]
    exchange(server, client)


def test_an_answer_that_cannot_be_encoded_is_logged_and_its_peer_told_why(server, client, caplog):
    client.send(Heartbeat(1))
    node, _ = server.receive(DEADLINE_S)
    server.send(node, StatusReport("x" * 2**21))
    refuse = client.receive(DEADLINE_S)
    assert isinstance(refuse, Refuse)
    assert "StatusReport" in refuse.reason
    assert "unsendable_message node=" in caplog.text
    exchange(server, client)


def test_a_server_of_another_protocol_is_an_error(server, client):
    client.send(Heartbeat(1))
    node, _ = server.receive(DEADLINE_S)
    server._socket.send_multipart([node[:16], b"nonsense"])
    with pytest.raises(ProtocolError, match="nonsense"):
        client.receive(DEADLINE_S)


def test_a_frame_over_the_limit_ends_its_connection_only():
    with ServerSocket([LOOPBACK], max_array_bytes=2**20) as server:
        address = server.contact_addresses[0]
        with ClientSocket(address) as large, ClientSocket(address) as client:
            large.send(a_push(np.zeros(2**19 + 1, np.float32)))
            assert server.receive(SILENCE_S) is None
            exchange(server, client)
            exchange(server, large)  # it has connected again


def wait_for_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("max_array_bytes", "piece", "count", "reason"),
    [
        (2**20, b"\x03" + (2**20).to_bytes(8) + bytes(2**20), 50, "bytes of an incomplete message"),
        # ZeroMQ takes 64 bytes for each empty frame, 245 MiB for these.
        (2**25, 40_000 * b"\x01\x00", 100, "too many frames of an incomplete message"),
    ],
    ids=["large frames", "empty frames"],
)
def test_a_message_without_an_end_ends_its_connection_only(
    caplog, max_array_bytes, piece, count, reason
):
    """Each frame says that more follow."""
    with (
        ServerSocket([LOOPBACK], max_array_bytes=max_array_bytes) as server,
        ClientSocket(server.contact_addresses[0]) as client,
        raw_dealer(server.contact_addresses[0]) as endless,
    ):
        with suppress(ConnectionError):
            for _ in range(count):
                endless.sendall(piece)
        wait_for_log(caplog, reason)
        exchange(server, client)
    assert "strangers_dropped count=1 peer=127.0.0.1:" in caplog.text


def test_a_server_that_grows_keeps_the_connections_that_wait_for_no_message(monkeypatch, caplog):
    looks = []
    look = connections.Connections._check
    monkeypatch.setattr(
        connections.Connections, "_check", lambda self: (look(self), looks.append(0))
    )
    with ServerSocket([LOOPBACK]) as server, ClientSocket(server.contact_addresses[0]) as client:
        exchange(server, client)
        grown = np.ones(2 * connections.MAX_GROWTH_BYTES, np.uint8)
        looked, deadline = len(looks), time.monotonic() + DEADLINE_S
        while len(looks) < looked + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with ClientSocket(server.contact_addresses[0]) as late:
            exchange(server, late)
        exchange(server, client)
        assert grown.all()
    assert "dropped" not in caplog.text


def raw_dealer(address: str) -> socket.socket:
    """A connection after ZMTP's handshake, on which frames can be sent one by one (RFC 37)."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    connection = socket.create_connection((host, int(port)), DEADLINE_S)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0")
    ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4) + b"DEALER"
    connection.sendall(greeting.ljust(64, b"\0") + b"\x04" + bytes([len(ready)]) + ready)
    received = b""
    while b"READY" not in received:
        received += connection.recv(1024)
    return connection


def test_a_stranger_may_send_a_handshake_and_no_more(keys, caplog):
    with ServerSocket([LOOPBACK], load_server_keys(keys), max_array_bytes=2**26) as server:
        address = server.contact_addresses[0]
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), DEADLINE_S) as stranger:
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0")
            stranger.sendall(greeting.ljust(64, b"\0"))
            with suppress(ConnectionError):
                stranger.sendall(b"\x06" + (2**26).to_bytes(8) + bytes(10_000))  # not all of it
                while stranger.recv(64):
                    pass
        wait_for_log(caplog, "bytes of an incomplete message")
        assert "strangers_dropped count=1 peer=127.0.0.1:" in caplog.text
        with ClientSocket(address, load_peer_keys(keys)) as worker:
            exchange(server, worker)


def test_a_peer_with_a_key_may_send_more_than_a_handshake_in_its_first_message(keys, caplog):
    gradient = np.zeros(2**22, np.float32)
    push = a_push(gradient)
    with ExitStack() as opened:
        server = opened.enter_context(
            ServerSocket([LOOPBACK], load_server_keys(keys), gradient.nbytes)
        )
        address, own = server.contact_addresses[0], load_peer_keys(keys)
        workers = [opened.enter_context(ClientSocket(address, own)) for _ in range(8)]
        for worker in workers:
            worker.send(push)
        for _ in workers:
            received = server.receive(DEADLINE_S)
            assert received is not None
            assert received[1].request_id == push.request_id
    assert "dropped" not in caplog.text


def test_a_connection_takes_one_descriptor(server):
    with ExitStack() as opened:
        address = server.contact_addresses[0]
        first = opened.enter_context(raw_dealer(address))
        before = open_sockets()
        assert first.fileno() >= 0
        for number in range(1, 11):
            opened.enter_context(raw_dealer(address))
            assert open_sockets() == before + 2 * number  # one at either end


def test_a_descriptor_that_was_reused_is_left_alone(server, client, monkeypatch):
    exchange(server, client)
    guard, resets = server._connections, []
    monkeypatch.setattr(socket.socket, "shutdown", lambda *_: resets.append(0))
    deadline = time.monotonic() + DEADLINE_S
    while not guard._open:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [descriptor] = guard._open
    guard._open[descriptor].peer = ("127.0.0.1", 9)
    guard._drop(descriptor, "a test")
    assert not resets
    exchange(server, client)


def test_nobody_comes_in_whose_connection_is_not_watched_yet(monkeypatch):
    may_go_on = threading.Event()
    take_in_events = connections.Connections._take_in_events

    def take_in_events_late(self):
        may_go_on.wait(DEADLINE_S)
        return take_in_events(self)

    monkeypatch.setattr(connections.Connections, "_take_in_events", take_in_events_late)
    with (
        ServerSocket([LOOPBACK]) as server,
        ClientSocket(server.contact_addresses[0]) as client,
    ):
        client.send(Heartbeat(7))
        assert server.receive(SILENCE_S) is None
        may_go_on.set()
        assert server.receive(DEADLINE_S) is not None


def test_many_small_messages_are_not_taken_for_one_without_an_end(server, client):
    for _ in range(60):
        client.send(a_push(WEIGHTS))
        assert server.receive(DEADLINE_S) is not None
    exchange(server, client)


def test_workers_that_push_large_gradients_all_at_once_are_no_strangers(monkeypatch, caplog):
    looks = []
    look = connections.Connections._check
    monkeypatch.setattr(
        connections.Connections, "_check", lambda self: (look(self), looks.append(0))
    )
    gradient = np.zeros(2**20, np.float32)
    push = a_push(gradient)
    with ExitStack() as opened:
        server = opened.enter_context(ServerSocket([LOOPBACK], max_array_bytes=gradient.nbytes))
        address = server.contact_addresses[0]
        workers = [opened.enter_context(ClientSocket(address)) for _ in range(32)]
        for worker in workers:
            exchange(server, worker)
        for worker in workers:
            worker.send(push)
        guard = server._connections
        watched = list(guard._open.items())
        deadline = time.monotonic() + DEADLINE_S
        while (
            sum(guard._received_bytes(*each) for each in watched) < len(workers) * gradient.nbytes
        ):
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.01)
        looked = len(looks)
        while len(looks) < looked + 2:  # while none of the gradients has been handled
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in workers:
            received = server.receive(DEADLINE_S)
            assert received is not None, caplog.text
            assert received[1].request_id == push.request_id
        exchange(server, workers[0])
    assert "connection_dropped" not in caplog.text


def test_a_message_of_countless_frames_is_skipped_in_small_pieces(server, client, stranger):
    exchange(server, client)
    for _ in range(50_000):
        stranger.send(b"", zmq.SNDMORE)
    stranger.send(b"")
    turns = 1
    assert server.receive(DEADLINE_S) is None
    assert isinstance(decode(stranger.recv_multipart()), Refuse)
    client.send(Heartbeat(8))
    while (received := server.receive(DEADLINE_S)) is None:
        turns += 1
    assert received[1] == Heartbeat(8)
    assert turns >= 5  # between which a server's loop goes on with all else


def test_strangers_keep_out_no_worker_and_no_process_of_this_host(
    keys, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(connections, "max_connections", lambda: 8)
    with ExitStack() as opened:
        listen = [f"ipc://{tmp_path}/socket", LOOPBACK]
        server = opened.enter_context(ServerSocket(listen, load_server_keys(keys)))
        ours, address = server.contact_addresses
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        local = opened.enter_context(ClientSocket(ours))
        member = opened.enter_context(ClientSocket(address, load_peer_keys(keys)))
        for client in (local, member):
            exchange(server, client)
        strangers = [
            opened.enter_context(socket.create_connection((host, int(port)))) for _ in range(50)
        ]
        wait_for_log(caplog, "more than 8 connections")
        late = opened.enter_context(ClientSocket(address, load_peer_keys(keys)))
        for client in (late, member, local):
            exchange(server, client)
        for stranger in strangers[:40]:  # those that were there for longest were sent away
            stranger.settimeout(DEADLINE_S)
            with suppress(ConnectionResetError):
                while stranger.recv(64):
                    pass


# Peers that vanish, or never were


def test_sending_to_a_node_that_is_gone_returns_false(server):
    with ClientSocket(server.contact_addresses[0]) as client:
        client.send(Heartbeat(1))
        node, _ = server.receive(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while server.send(node, Alive()):
        assert time.monotonic() < deadline
        server.receive(0.01)
    assert not server.send(b"never was", Alive())


def test_sending_to_a_node_that_does_not_read_returns_false(server, client):
    client.send(Heartbeat(1))
    node, _ = server.receive(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while server.send(node, some_work(WEIGHTS)):
        assert time.monotonic() < deadline


def test_a_server_that_takes_nothing_is_an_error_and_not_a_hang():
    with ClientSocket(f"tcp://127.0.0.1:{free_port()}") as client:
        error = next(filter(None, (send_error(client) for _ in range(1000))))
        assert "has not read" in str(error)


def send_error(client: ClientSocket) -> NoAnswerError | None:
    try:
        client.send(Heartbeat(1))
    except NoAnswerError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_nobody_listening_is_named(tmp_path, kind):
    address = f"tcp://127.0.0.1:{free_port()}" if kind == "tcp" else f"ipc://{tmp_path}/nobody"
    with ClientSocket(address) as client:
        client.send(Heartbeat(1))
        assert client.receive(0.01) is None
        error = str(client.no_answer(waited_s=5.0))
    assert f"no answer from {address} in 5 s" in error
    assert "no server listens" in error


def test_a_listener_of_something_else_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=answer_as_a_web_server, args=[listener])
        answering.start()
        with ClientSocket(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as client:
            assert "is not a dist-net server" in str(client.no_answer(5.0))
    answering.join()


def answer_as_a_web_server(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" + b" " * 64)


def test_a_busy_server_is_named(client):
    assert "busy or stuck" in str(client.no_answer(5.0))


# Addresses that cannot be listened on


def test_an_address_of_another_host_is_named(keys):
    with pytest.raises(AddressError, match=naming("192.0.2.1", "ip address")):
        ServerSocket(["tcp://192.0.2.1:0"], load_server_keys(keys))


def test_a_directory_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(AddressError, match=naming("missing/socket", "directory")):
        ServerSocket([f"ipc://{tmp_path}/missing/socket"])


def test_an_address_that_is_none_is_named():
    with pytest.raises(AddressError, match="nowhere"):
        ServerSocket([LOOPBACK, "nowhere"])
    with pytest.raises(AddressError, match="nowhere"):
        ClientSocket("nowhere")


def test_a_file_that_is_no_socket_is_not_deleted(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    with pytest.raises(AddressError, match=naming("thesis", "socket")):
        ServerSocket([f"ipc://{tmp_path}/thesis"])
    assert (tmp_path / "thesis").read_text() == "years of work"


@pytest.mark.parametrize("listen", ["ipc://{tmp}/socket", LOOPBACK])
def test_an_address_in_use_is_named_and_not_taken_over(tmp_path, listen):
    with ServerSocket([listen.format(tmp=tmp_path)]) as server:
        [address] = server.contact_addresses
        with pytest.raises(AddressError, match=naming(address)):
            ServerSocket([address])
        with ClientSocket(address) as client:
            exchange(server, client)


def test_a_dead_servers_unix_socket_is_reused(tmp_path):
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(f"{tmp_path}/socket")
    with (
        ServerSocket([f"ipc://{tmp_path}/socket"]) as server,
        ClientSocket(server.contact_addresses[0]) as client,
    ):
        exchange(server, client)


@pytest.mark.parametrize("address", ["tcp://*:0", "tcp://0.0.0.0:0", "tcp://192.0.2.1:0"])
def test_nothing_listens_beyond_this_host_without_keys(address):
    with pytest.raises(InsecureAddressError, match=naming("dist-net keys create", "--keys")):
        ServerSocket([LOOPBACK, address])


def test_nothing_connects_beyond_this_host_without_keys():
    with pytest.raises(InsecureAddressError, match=naming("dist-net keys create", "--keys")):
        ClientSocket("tcp://192.0.2.1:5555")


# Keys


@pytest.fixture
def secured_server(keys):
    with ServerSocket([LOOPBACK], load_server_keys(keys)) as server:
        yield server


def assert_kept_out(server: ServerSocket, client: ClientSocket, cause: str) -> None:
    with pytest.raises(AccessRefusedError, match=cause):  # noqa: PT012
        while True:
            client.send(Heartbeat(1))
            assert client.receive(0.05) is None
    assert server.receive(SILENCE_S) is None
    assert cause in str(client.no_answer(SILENCE_S))


def test_a_worker_that_is_not_on_the_allow_list_is_kept_out(secured_server, keys, tmp_path, caplog):
    create_keys(tmp_path / "others")
    add_keys(tmp_path / "others", name="stranger")
    shutil.copy(keys / "server.key", tmp_path / "others/stranger/server.key")
    stranger_keys = load_peer_keys(tmp_path / "others/stranger")
    with ClientSocket(secured_server.contact_addresses[0], stranger_keys) as stranger:
        assert_kept_out(secured_server, stranger, "refuses these keys")
    assert f"key_denied key={stranger_keys.public.decode()}" in caplog.text


def test_a_worker_without_keys_is_kept_out(secured_server):
    with ClientSocket(secured_server.contact_addresses[0]) as client:
        assert_kept_out(secured_server, client, "--keys DIR")


def test_a_worker_with_keys_does_not_talk_to_another_server(secured_server, tmp_path):
    create_keys(tmp_path / "others")
    other_keys = load_peer_keys(add_keys(tmp_path / "others"))
    with ClientSocket(secured_server.contact_addresses[0], other_keys) as client:
        assert_kept_out(secured_server, client, "its keys are not those of server.key")


def test_a_worker_with_keys_does_not_talk_to_a_server_without(server, keys):
    with ClientSocket(server.contact_addresses[0], load_peer_keys(keys)) as client:
        assert_kept_out(server, client, "uses no keys")


JOIN = Join("one", 1, "digest", 6)


@pytest.mark.parametrize(
    ("role", "message", "is_taken"),
    [
        ("worker", JOIN, True),
        ("worker", JoinPool("one", "host", 1), True),
        ("worker", StatusRequest(0), True),
        ("worker", SnapshotRequest(), False),
        ("worker", Shutdown("now"), False),
        ("client", StatusRequest(0), True),
        ("client", SnapshotRequest(), True),
        ("client", JOIN, False),
        ("client", a_push(WEIGHTS), False),
        ("client", JoinPool("one", "host", 1), False),
        ("client", Shutdown("now"), False),
        ("operator", Shutdown("now"), True),
        ("operator", JOIN, False),
        ("operator", ModelPrepared("model", 1, "{}", ""), False),
        ("worker", RecipeRequest(), True),
        ("client", RecipeRequest(), True),
        ("worker", Enroll("one", "worker", ""), False),
        ("client", Enroll("one", "worker", ""), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, tuple) else str(value),
)
def test_a_key_may_do_what_its_role_is_for(secured_server, keys, role, message, is_taken, caplog):
    role_keys = load_peer_keys(add_keys(keys, role, "somebody"))
    with ClientSocket(secured_server.contact_addresses[0], role_keys) as client:
        client.send(message)
        received = secured_server.receive(DEADLINE_S)
        if is_taken:
            assert type(received[1]) is type(message)
        else:
            assert received is None
            refuse = client.receive(DEADLINE_S)
            assert f"role {role} may not send {type(message).__name__}" in refuse.reason
            assert not refuse.may_rejoin
            assert "role_refused" in caplog.text
            assert "undecodable" not in caplog.text


def refusal_of(server: ServerSocket, client: ClientSocket) -> Refuse:
    """The answer once the server, which looks at the files twice a second, refuses the key."""
    refusal = None
    while refusal is None:
        client.send(Heartbeat(1))
        server.receive(DEADLINE_S)
        refusal = client.receive(0.05)
    return refusal


def test_whoever_is_shut_out_is_told_so_and_cut_off(secured_server, keys, caplog):
    late_keys = load_peer_keys(add_keys(keys, name="late"))
    with ClientSocket(secured_server.contact_addresses[0], late_keys) as late:
        exchange(secured_server, late)
        assert revoke(keys, "late") == ["workers/late"]
        refusal = refusal_of(secured_server, late)
        assert "no longer admitted" in refusal.reason
        assert not refusal.may_rejoin
        wait_for_log(caplog, "its key was revoked")
    with ClientSocket(secured_server.contact_addresses[0], late_keys) as late:
        assert_kept_out(secured_server, late, "refuses these keys")


def test_a_token_lets_in_a_key_and_nothing_else(secured_server, keys):
    address = secured_server.contact_addresses[0]
    token_keys = peer_keys_of(invite(keys, TRAINING, (address,)))
    own = PeerKeys.new(token_keys.server_public)
    with ClientSocket(address, own) as stranger:
        assert_kept_out(secured_server, stranger, "refuses these keys")
    with ClientSocket(address, token_keys) as holder:
        holder.send(JOIN)
        assert secured_server.receive(DEADLINE_S) is None
        assert "role token may not send Join" in holder.receive(DEADLINE_S).reason
        holder.send(Enroll("one", "worker", own.public.decode()))
        assert secured_server.receive(DEADLINE_S) is None
        assert holder.receive(DEADLINE_S) == Enrolled()
    with ClientSocket(address, own) as worker:
        exchange(secured_server, worker)


def test_a_damaged_key_file_admits_nobody_and_keeps_no_revoked_key(secured_server, keys, caplog):
    late_keys = load_peer_keys(add_keys(keys, name="late"))
    address = secured_server.contact_addresses[0]
    (keys / "workers/damaged.key").write_text("nonsense")
    with ClientSocket(address, load_peer_keys(keys)) as worker:
        exchange(secured_server, worker)
    with ClientSocket(address, late_keys) as late:
        exchange(secured_server, late)
        with pytest.raises(KeyFileError, match=r"damaged\.key"):
            revoke(keys, "late")
        assert not refusal_of(secured_server, late).may_rejoin
    assert caplog.text.count("allow_list_unreadable") == 1


def test_a_worker_comes_in_after_the_allow_list_could_not_be_read(
    secured_server, keys, monkeypatch, caplog
):
    read = security.allowed_keys
    outcomes = [KeyFileError("no descriptor left"), KeyFileError("no descriptor left")]

    def read_at_last(directory):
        if outcomes:
            raise outcomes.pop()
        return read(directory)

    worker_keys = load_peer_keys(keys)
    monkeypatch.setattr(security, "allowed_keys", read_at_last)
    with ClientSocket(secured_server.contact_addresses[0], worker_keys) as client:
        exchange(secured_server, client)
    assert caplog.text.count("allow_list_unreadable error=no descriptor left") == 1


def test_a_standby_without_a_copy_refuses_nobody_before_it_knows_the_runs_keys(keys, tmp_path):
    server_keys = load_server_keys(keys)
    create_keys(tmp_path / "standby", (server_keys.public, server_keys.secret))
    add_keys(tmp_path / "standby", OPERATOR)
    with (
        ServerSocket([LOOPBACK], load_server_keys(tmp_path / "standby", of_standby=True)) as server,
        ClientSocket(
            server.contact_addresses[0], load_peer_keys(keys), hang_ups_s=math.inf
        ) as peer,
    ):
        while peer.contact is not Contact.HUNG_UP:
            assert peer.receive(0.05) is None
        admit_only(tmp_path / "standby", admitted_by(keys))
        exchange(server, peer)


def test_local_workers_need_no_keys_beside_remote_ones_that_do(keys, tmp_path):
    listen = ["tcp://0.0.0.0:0", f"ipc://{tmp_path}/socket"]
    with ServerSocket(listen, load_server_keys(keys)) as server:
        tcp, ipc = server.contact_addresses
        host, _, port = tcp.removeprefix("tcp://").rpartition(":")
        assert host == socket.gethostname()
        remote = f"tcp://127.0.0.1:{port}"
        with (
            ClientSocket(ipc) as local_client,
            ClientSocket(ipc, load_peer_keys(keys)) as local_client_with_keys,
            ClientSocket(remote, load_peer_keys(keys)) as remote_client,
        ):
            for client in (local_client, local_client_with_keys, remote_client):
                exchange(server, client)
        with ClientSocket(remote) as client:
            assert_kept_out(server, client, "requires keys")


def test_a_client_that_stood_still_looks_again_before_it_says_that_nothing_came(
    server, client, monkeypatch
):
    client.send(Heartbeat(1))
    node, _ = server.receive(DEADLINE_S)
    server.send(node, Alive())
    now, receive_frames = 5.0, client._receive_frames

    def stand_still():
        nonlocal now
        now += 60
        monkeypatch.setattr(client, "_receive_frames", receive_frames)
        while not client.has_message():  # ZeroMQ's thread goes on a little later
            time.sleep(0.001)
        raise zmq.Again

    monkeypatch.setattr("dist_net.wire.transport.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(client, "_receive_frames", stand_still)
    assert client.receive(1.0) == Alive()
