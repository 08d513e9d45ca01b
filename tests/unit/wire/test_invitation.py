"""Invitations: whom a server lets in for a token, for how long, and how that is taken back."""

import threading
from pathlib import Path

import pytest

from dist_net.cli import main
from dist_net.errors import KeyFileError, TokenError
from dist_net.wire.invitation import (
    MAX_KEYS_PER_TOKEN,
    enroll,
    invite,
    peer_keys_of,
    revoke,
)
from dist_net.wire.messages import Enroll, Enrolled, Refuse
from dist_net.wire.security import PeerKeys, add_keys, load_server_keys, read_public_key, write_key
from dist_net.wire.token import TRAINING, JoinToken
from naming import naming

NOW_S = 1_795_000_000.0
ADDRESSES = ("tcp://192.0.2.1:5555",)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "keys"


@pytest.fixture
def invitation(directory: Path) -> JoinToken:
    return invite(directory, TRAINING, ADDRESSES, 60.0, NOW_S)


def enrolling(keys: PeerKeys, role: str = "worker", name: str = "rack 2") -> Enroll:
    return Enroll(name, role, keys.public.decode())


def names(directory: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.stem}" for path in directory.glob("*s/*.key"))


def test_keys_are_made_with_the_first_token_and_kept(directory: Path) -> None:
    first = invite(directory, TRAINING, ADDRESSES)
    server = load_server_keys(directory)
    assert peer_keys_of(first).server_public == server.public
    assert peer_keys_of(invite(directory, TRAINING, ADDRESSES)).server_public == server.public
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.glob("*.key_secret"))
    assert directory.stat().st_mode & 0o077 == 0


def test_a_token_brings_the_keys_by_which_the_server_knows_it(
    directory: Path, invitation: JoinToken
) -> None:
    token = JoinToken.parse(invitation.text)
    assert token == invitation
    public = read_public_key(directory / "tokens" / f"{token.identity}.key")
    assert peer_keys_of(token).public == public
    assert token.expires_s == NOW_S + 60


def test_a_key_is_let_in_for_a_token_once(directory: Path, invitation: JoinToken) -> None:
    keys = PeerKeys.new(peer_keys_of(invitation).server_public)
    for _ in range(2):  # the request may come twice
        assert (
            enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S) == Enrolled()
        )
    [worker] = (directory / "workers").glob("*.key")
    assert worker.stem.startswith(f"{invitation.identity}-rack-2-")
    assert keys.public.decode() in worker.read_text()


@pytest.mark.parametrize(
    ("after_s", "says"), [(60.5, "expired 0 s ago"), (60 + 7200, "expired 2 hours ago")]
)
def test_a_token_that_has_expired_lets_nobody_in(
    directory: Path, invitation: JoinToken, after_s: float, says: str
) -> None:
    keys = PeerKeys.new(peer_keys_of(invitation).server_public)
    refuse = enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S + after_s)
    assert isinstance(refuse, Refuse)
    assert says in refuse.reason
    assert "dist-net keys token" in refuse.reason
    assert not list((directory / "workers").glob("*.key"))


def test_a_server_that_is_often_started_keeps_few_tokens(directory: Path) -> None:
    for day in range(20):
        invite(directory, TRAINING, ADDRESSES, 60.0, NOW_S + 86_400 * day)
    assert len(list((directory / "tokens").iterdir())) == 8


@pytest.mark.parametrize(
    ("role", "key"), [("operator", "x" * 40), ("worker", "short"), ("worker", "\0" * 40)]
)
def test_what_is_no_key_of_a_worker_or_client_is_not_let_in(
    directory: Path, invitation: JoinToken, role: str, key: str
) -> None:
    refuse = enroll(directory, peer_keys_of(invitation).public, Enroll("host", role, key), NOW_S)
    assert isinstance(refuse, Refuse)
    assert "expected a worker or client" in refuse.reason


def test_a_token_lets_in_a_bounded_number_of_keys(
    directory: Path, invitation: JoinToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_net.wire.invitation.MAX_KEYS_PER_TOKEN", 2)
    assert MAX_KEYS_PER_TOKEN > 2
    answers = [
        enroll(directory, peer_keys_of(invitation).public, enrolling(PeerKeys.new(b"")), NOW_S)
        for _ in range(3)
    ]
    assert answers[:2] == [Enrolled(), Enrolled()]
    assert "has enrolled 2 keys" in answers[2].reason  # type: ignore[union-attr]


def test_a_revoked_token_takes_back_all_that_it_let_in(
    directory: Path, invitation: JoinToken
) -> None:
    other = invite(directory, TRAINING, ADDRESSES, 60.0, NOW_S)
    add_keys(directory, name="friend")
    for each in (invitation, other):
        for role in ("worker", "client"):
            keys = PeerKeys.new(b"")
            assert (
                enroll(directory, peer_keys_of(each).public, enrolling(keys, role), NOW_S)
                == Enrolled()
            )
    deleted = revoke(directory, invitation.identity)
    assert len(deleted) == 3
    assert not [name for name in names(directory) if invitation.identity in name]
    assert len([name for name in names(directory) if other.identity in name]) == 3
    assert "workers/friend" in names(directory)
    keys = PeerKeys.new(b"")
    refuse = enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S)
    assert "was revoked" in refuse.reason  # type: ignore[union-attr]


def test_one_host_or_one_peer_is_shut_out_by_name(directory: Path, invitation: JoinToken) -> None:
    keys = PeerKeys.new(b"")
    enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S)
    add_keys(directory, name="friend")
    [worker] = [name for name in names(directory) if "rack-2" in name]
    assert revoke(directory, worker.removeprefix("workers/")) == [worker]
    assert revoke(directory, "friend") == ["workers/friend"]
    assert names(directory) == ["operators/operator", f"tokens/{invitation.identity}"]


def test_whom_nobody_knows_cannot_be_revoked(directory: Path, invitation: JoinToken) -> None:
    with pytest.raises(KeyFileError, match=naming("'*'", invitation.identity)):
        revoke(directory, "*")


@pytest.mark.parametrize("is_before", [True, False])
def test_a_token_that_is_revoked_while_it_enrols_a_key_keeps_none(
    directory: Path, invitation: JoinToken, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    def write_while_revoked(path: Path, key: bytes) -> None:
        for revokes in (is_before, not is_before):
            if revokes:
                revoke(directory, invitation.identity)
            else:
                write_key(path, key)

    monkeypatch.setattr("dist_net.wire.invitation.write_key", write_while_revoked)
    keys = PeerKeys.new(peer_keys_of(invitation).server_public)
    answer = enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S)
    assert isinstance(answer, Refuse)
    assert names(directory) == ["operators/operator"]


def test_a_host_that_enrols_in_a_loop_keeps_no_key_of_a_revoked_token(directory: Path) -> None:
    for _ in range(20):
        invitation = invite(directory, TRAINING, ADDRESSES, 60.0, NOW_S)
        first = threading.Event()

        def enrol_until_refused(invitation: JoinToken = invitation, first=first) -> None:
            answer: object = Enrolled()
            while isinstance(answer, Enrolled):
                message = enrolling(PeerKeys.new(b""))
                answer = enroll(directory, peer_keys_of(invitation).public, message, NOW_S)
                first.set()

        host = threading.Thread(target=enrol_until_refused)
        host.start()
        first.wait()
        revoke(directory, invitation.identity)
        host.join()
        assert names(directory) == ["operators/operator"]


def test_a_key_file_that_cannot_be_deleted_or_read_is_named_and_the_rest_deleted(
    directory: Path, invitation: JoinToken, capsys: pytest.CaptureFixture[str]
) -> None:
    add_keys(directory, name="friend")
    keys = PeerKeys.new(peer_keys_of(invitation).server_public)
    assert enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S) == Enrolled()
    stuck = directory / "workers" / f"{invitation.identity}-stuck.key"
    stuck.mkdir()  # which unlink refuses, whoever runs the tests
    assert main(["keys", "revoke", str(directory), invitation.identity, "friend"]) == 2
    assert str(stuck) in capsys.readouterr().err
    assert names(directory) == ["operators/operator", f"workers/{stuck.stem}"]
    assert main(["keys", "revoke", str(directory), "operator"]) == 2
    assert str(stuck) in capsys.readouterr().err
    assert names(directory) == [f"workers/{stuck.stem}"]


@pytest.mark.parametrize("lifetime_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lifetime_that_cannot_be_is_named(directory: Path, lifetime_s: float) -> None:
    with pytest.raises(TokenError, match=naming(f"{lifetime_s:g} s")):
        invite(directory, TRAINING, ADDRESSES, lifetime_s)
    assert not directory.exists()


def test_a_token_that_is_revoked_while_it_is_read_lets_nobody_in(
    directory: Path, invitation: JoinToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_lose(path: Path) -> bytes:
        key = read_public_key(path)
        path.unlink()
        return key

    monkeypatch.setattr("dist_net.wire.security.read_public_key", read_and_lose)
    keys = PeerKeys.new(peer_keys_of(invitation).server_public)
    answer = enroll(directory, peer_keys_of(invitation).public, enrolling(keys), NOW_S)
    assert isinstance(answer, Refuse)
    assert "revoked" in answer.reason


def test_a_key_file_that_another_process_deletes_before_it_is_read_is_no_fault(
    directory: Path, invitation: JoinToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_and_read(path: Path) -> bytes:
        if path.stem == "deleted":
            path.unlink()
        return read_public_key(path)

    monkeypatch.setattr("dist_net.wire.security.read_public_key", delete_and_read)
    token_key, name = peer_keys_of(invitation).public, invitation.identity
    message = enrolling(PeerKeys.new(b""))
    for succeeds in (
        lambda: load_server_keys(directory).allow_list == directory,
        lambda: enroll(directory, token_key, message, NOW_S) == Enrolled(),
        lambda: len(revoke(directory, name)) == 2,
    ):
        deleted = [directory / f"{role}s" / "deleted.key" for role in ("token", "worker")]
        for path in deleted:
            path.unlink(missing_ok=True)
            write_key(path, PeerKeys.new(b"").public)
        assert succeeds()
        assert not deleted[0].exists()
