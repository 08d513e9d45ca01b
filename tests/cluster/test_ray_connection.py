"""What is said where there is no Ray, or no cluster of it."""

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from dist_net.errors import MissingExtraError, RayClusterError
from dist_net.processes import ray_cluster
from dist_net.processes.ray_cluster import connected
from naming import naming

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=naming("--cluster ray", ".[ray]")):
        connected("auto")


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(RayClusterError, match=naming(repr(address), "HOST:PORT")):
        connected(address)


def test_an_address_where_nobody_listens_is_refused(listener: socket.socket) -> None:
    address = address_of(listener)
    listener.close()
    with pytest.raises(RayClusterError, match="Connection refused"):
        connected(address)


def test_a_server_of_something_else_is_told_from_ray(listener: socket.socket) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = threading.Thread(target=answer)
    server.start()
    with pytest.raises(RayClusterError, match=naming("not Ray", "HOST:PORT")):
        connected(address_of(listener))
    server.join()


def test_a_server_that_says_nothing_is_not_waited_for(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWERS_WITHIN_S", 0.05)
    with pytest.raises(RayClusterError, match="timed out"):
        connected(address_of(listener))
