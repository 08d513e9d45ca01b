"""Reaching a server by a token: whichever address answers, and what is said of those that fail."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dist_net.errors import AddressError, NoAnswerError, TokenError
from dist_net.wire.invitation import invite, revoke
from dist_net.wire.messages import Alive, Heartbeat
from dist_net.wire.security import load_server_keys
from dist_net.wire.token import TRAINING, JoinToken
from dist_net.wire.token_exchange import ServerAccess, join_by_token
from dist_net.wire.transport import ClientSocket, ServerSocket
from naming import naming

NOBODY = "tcp://127.0.0.1:9"
DEADLINE_S = 60.0


@contextmanager
def answering(keys: Path) -> Iterator[str]:
    """The address of a server that answers heartbeats, with these keys."""
    done = threading.Event()
    addresses: list[str] = []
    is_open = threading.Event()

    def serve() -> None:
        with ServerSocket(["tcp://127.0.0.1:0"], load_server_keys(keys)) as server:
            addresses.extend(server.contact_addresses)
            is_open.set()
            while not done.is_set():
                if (received := server.receive(0.02)) is not None:
                    server.send(received[0], Alive())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert is_open.wait(DEADLINE_S)
        yield addresses[0]
    finally:
        done.set()
        thread.join()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def invitation(keys: Path) -> JoinToken:
    return invite(keys, TRAINING, (NOBODY,))


def works(server: ServerAccess) -> bool:
    with ClientSocket(*server) as client:
        client.send(Heartbeat(1))
        return client.receive(DEADLINE_S) == Alive()


def test_the_address_that_answers_is_found_among_others(keys: Path, invitation: JoinToken) -> None:
    with answering(keys) as address:
        server = join_by_token(
            replace(invitation, addresses=(NOBODY, address)), timeout_s=DEADLINE_S
        )
        assert server.address == address
        assert works(server)


def test_another_server_at_a_tokens_address_is_not_taken_for_the_right_one(
    keys: Path, invitation: JoinToken, tmp_path: Path
) -> None:
    invite(tmp_path / "others", TRAINING, (NOBODY,))
    with answering(keys) as right, answering(tmp_path / "others") as wrong:
        server = join_by_token(replace(invitation, addresses=(wrong, right)), timeout_s=DEADLINE_S)
        assert server.address == right
        with pytest.raises(TokenError, match=naming(wrong)):
            join_by_token(replace(invitation, addresses=(wrong,)), timeout_s=DEADLINE_S)


def test_a_host_goes_on_by_its_own_key_when_the_token_has_expired(
    keys: Path, invitation: JoinToken
) -> None:
    with answering(keys) as address:
        token = replace(invitation, addresses=(address,))
        server = join_by_token(token, timeout_s=DEADLINE_S)
        [file] = (keys / "tokens").iterdir()
        file.write_text(file.read_text().replace(str(invitation.expires_s), "1"))
        with pytest.raises(TokenError, match=r"expired [\d,]+ days"):
            join_by_token(token, timeout_s=DEADLINE_S)
        assert works(server)
        revoke(keys, invitation.identity)
        with pytest.raises(TokenError, match=naming("revoked", "dist-net keys token")):
            join_by_token(token, timeout_s=DEADLINE_S)


def test_nobody_answers(invitation: JoinToken) -> None:
    with pytest.raises(NoAnswerError, match=naming("0.2 s", NOBODY)):
        join_by_token(replace(invitation, addresses=(NOBODY,)), timeout_s=0.2)


def test_a_host_that_no_name_is_known_of(invitation: JoinToken) -> None:
    with pytest.raises(AddressError, match=r"'no\.such\.host\.invalid'"):
        join_by_token(
            replace(invitation, addresses=("tcp://no.such.host.invalid:5",)), timeout_s=0.2
        )
