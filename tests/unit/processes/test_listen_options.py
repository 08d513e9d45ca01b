"""How a server is opened to others: when keys are made for it, and what its token says."""

from pathlib import Path

import pytest

from dist_net.errors import AddressError, TokenError
from dist_net.processes.cluster_options import ListenOptions, pasted
from dist_net.wire.invitation import invite_again, peer_keys_of
from dist_net.wire.security import load_server_keys, make_keys
from dist_net.wire.token import POOL, JoinToken
from naming import naming


@pytest.mark.parametrize(
    ("listen", "is_needed"),
    [
        ((), False),
        (("tcp://127.0.0.1:0", "tcp://[::1]:0", "ipc://socket"), False),
        (("tcp://127.0.0.1:0", "tcp://0.0.0.0:0"), True),
        (("tcp://192.0.2.1:5555",), True),
    ],
)
def test_keys_are_made_for_who_listens_beyond_this_host(
    listen: tuple[str, ...], is_needed: bool
) -> None:
    assert ListenOptions(listen).needs_keys is is_needed
    assert not ListenOptions(listen, keys=Path("keys")).needs_keys


def test_a_token_names_every_address_and_the_keys(tmp_path: Path) -> None:
    listen = ("tcp://192.0.2.1:0", "ipc://socket", "tcp://[2001:db8::1]:0")
    bound = ("tcp://192.0.2.1:777", "ipc://socket", "tcp://[2001:db8::1]:778")
    token = ListenOptions(listen).token(tmp_path / "keys", bound)
    assert token is not None
    assert token.addresses == (bound[0], bound[2])
    assert peer_keys_of(token).server_public == load_server_keys(tmp_path / "keys").public
    assert pasted(token) == f"echo {token.text} | dist-net join"
    again = invite_again(tmp_path / "keys")
    assert again.addresses == token.addresses
    assert again.identity != token.identity


def test_keys_that_cannot_be_added_to_still_serve(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    (tmp_path / "keys" / "tokens").write_text("as if the directory could not be written")
    listen_options = ListenOptions(("tcp://192.0.2.1:0",), keys=tmp_path / "keys")
    [line] = listen_options.lines(listen_options.keys, ["tcp://192.0.2.1:777"], None)
    assert line.startswith("no token for other hosts: cannot ")


def test_on_loopback_a_token_needs_no_keys() -> None:
    token = ListenOptions(("tcp://127.0.0.1:0",), kind=POOL).token(None, ["tcp://127.0.0.1:777"])
    assert token is not None
    assert JoinToken.parse(token.text) == token
    assert not token.secret
    assert pasted(token) == f"echo {token.text} | dist-net inference-worker"
    assert ListenOptions(("ipc://socket",)).token(None, ["ipc://socket"]) is None


def test_what_cannot_be_is_refused_before_anything_is_made() -> None:
    with pytest.raises(AddressError, match=naming("'host:1'")):
        ListenOptions(contact="host:1")
    with pytest.raises(TokenError, match=naming("-1 s")):
        ListenOptions(lifetime_s=-1)
