"""By which addresses others may reach a server: chosen by interfaces and routes, or said."""

import socket
from pathlib import Path

import pytest

from dist_net.errors import AddressError
from dist_net.wire import address
from dist_net.wire.address import candidates, checked_host, reachable_addresses
from naming import naming


@pytest.mark.parametrize(
    ("by_route", "of_interfaces", "expected"),
    [
        (["192.0.2.7"], ["127.0.0.1", "10.0.0.1", "192.0.2.7"], ["192.0.2.7", "10.0.0.1"]),
        ([], ["127.0.0.1", "10.0.0.1"], ["10.0.0.1"]),
        ([], ["127.0.0.1"], ["127.0.0.1"]),
        ([], [], ["127.0.0.1"]),
        (["192.0.2.7"], ["169.254.3.4", "0.0.0.0"], ["192.0.2.7"]),
        (["192.0.2.7", "2001:db8::7"], ["::1", "fe80::7"], ["192.0.2.7"]),
    ],
)
def test_the_address_by_which_messages_leave_comes_first(
    by_route: list[str], of_interfaces: list[str], expected: list[str]
) -> None:
    assert candidates(by_route, of_interfaces, has_ipv6=False) == expected


def test_a_server_that_takes_ipv6_may_be_reached_by_both() -> None:
    found = candidates(["192.0.2.7", "2001:db8::7"], ["::1", "fe80::7", "fd00::7"], has_ipv6=True)
    assert found == ["192.0.2.7", "2001:db8::7", "fd00::7"]


def test_a_host_with_very_many_addresses_names_the_first() -> None:
    many = [f"10.0.{place}.1" for place in range(200)]
    assert candidates(["192.0.2.7"], many, has_ipv6=False) == ["192.0.2.7", *many[:15]]


@pytest.mark.parametrize(
    ("listen", "bound", "said", "expected"),
    [
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:777", None, "tcp://127.0.0.1:777"),
        ("tcp://[::1]:0", "tcp://[::1]:777", None, "tcp://[::1]:777"),
        ("tcp://0.0.0.0:0", "tcp://host:777", "192.0.2.1", "tcp://192.0.2.1:777"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:777", "2001:db8::1", "tcp://[2001:db8::1]:777"),
        ("tcp://*:0", "tcp://host:777", "trainer.example", "tcp://trainer.example:777"),
    ],
)
def test_the_contact_address_has_the_port_that_was_chosen(
    listen: str, bound: str, said: str | None, expected: str
) -> None:
    assert reachable_addresses(listen, bound, said) == (expected,)


def test_a_server_that_listens_everywhere_is_not_reached_there() -> None:
    for listen in ("tcp://0.0.0.0:777", "tcp://*:777"):
        found = reachable_addresses(listen, "tcp://host:777")
        assert found
        assert all(each.endswith(":777") and "0.0.0.0" not in each for each in found)


TABLE = """Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     +-- 198.51.100.0/24 2 0 2
           |-- 198.51.100.0
              /24 link UNICAST
           |-- 198.51.100.2
              /32 host LOCAL
           |-- 198.51.100.255
              /32 link BROADCAST
     |-- 203.0.113.9
        /32 host LOCAL
"""


def test_every_address_of_the_kernels_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fib_trie").write_text(TABLE)
    monkeypatch.setattr(address, "_IPV4_TABLE", tmp_path / "fib_trie")
    found = reachable_addresses("tcp://*:777", "tcp://host:777")
    assert {"tcp://198.51.100.2:777", "tcp://203.0.113.9:777"} <= set(found)
    others = ("127.0.0.1", "198.51.100.0", "198.51.100.255")
    assert not {f"tcp://{each}:777" for each in others} & set(found)


def test_without_the_kernels_table_the_hosts_name_is_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "_IPV4_TABLE", tmp_path / "missing")
    monkeypatch.setattr(socket, "gethostname", lambda: "203.0.113.5")
    assert "tcp://203.0.113.5:777" in reachable_addresses("tcp://0.0.0.0:777", "tcp://host:777")


@pytest.mark.parametrize("host", ["", "host:5555", "tcp://host", "a b", "[::1", "bücher.example"])
def test_what_is_no_host_is_named(host: str) -> None:
    with pytest.raises(AddressError, match=naming(repr(host))):
        checked_host(host)
