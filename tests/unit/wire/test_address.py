"""What may be written as an address, and what reaches beyond this host."""

import pytest

from dist_net.errors import AddressError
from dist_net.wire.address import contact_address, listen_address
from naming import naming


@pytest.mark.parametrize(
    ("text", "endpoint", "stays_on_this_host"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555", True),
        ("tcp://127.1.2.3:0", "tcp://127.1.2.3:0", True),
        ("tcp://localhost:5555", "tcp://127.0.0.1:5555", True),
        ("tcp://[::1]:5555", "tcp://[::1]:5555", True),
        ("tcp://0.0.0.0:5555", "tcp://0.0.0.0:5555", False),
        ("tcp://*:5555", "tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", "tcp://[::]:5555", False),
        ("tcp://192.0.2.1:5555", "tcp://192.0.2.1:5555", False),
        ("tcp://[2001:db8::1]:5555", "tcp://[2001:db8::1]:5555", False),
        ("ipc:///run/x/socket", "ipc:///run/x/socket", True),
        ("ipc://@name", "ipc://@name", True),
    ],
)
def test_an_address_to_listen_on(text, endpoint, stays_on_this_host):
    address = listen_address(text)
    assert (address.endpoint, address.stays_on_this_host) == (endpoint, stays_on_this_host)


@pytest.mark.parametrize(
    "text",
    [
        "", "5555", "127.0.0.1:5555", "http://127.0.0.1:5555", "tcp://", "tcp://127.0.0.1",
        "tcp://127.0.0.1:", "tcp://:5555", "tcp://127.0.0.1:65536", "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:x", "tcp://[::1:5555", "tcp://::1:5555", "tcp://127.0.0.1:5555/path",
        "tcp://me@127.0.0.1:5555", "tcp://127.0.0.1:5555,127.0.0.1:5556", "tcp://a b:5555",
        "ipc://", "ipc://" + "x" * 108,
    ],
)  # fmt: skip
def test_what_is_no_address_is_named(text):
    for parse in (listen_address, contact_address):
        with pytest.raises(AddressError) as caught:
            parse(text)
        assert repr(text) in str(caught.value)
        assert "expected" in str(caught.value)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:0", "tcp://*:5555", "tcp://0.0.0.0:5555"])
def test_an_address_that_can_only_be_listened_on_is_not_connected_to(text):
    listen_address(text)
    with pytest.raises(AddressError, match=naming(repr(text))):
        contact_address(text)
