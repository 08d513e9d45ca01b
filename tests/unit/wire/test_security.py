"""Key files: how they are made, and what is wrong with those that are not used."""

import argparse
from pathlib import Path

import pytest

from dist_net.cli import keys as keys_command
from dist_net.errors import KeyFileError
from dist_net.wire.security import (
    add_keys,
    create_keys,
    load_peer_keys,
    load_server_keys,
)
from naming import naming


@pytest.fixture
def directory(tmp_path):
    create_keys(tmp_path / "keys")
    add_keys(tmp_path / "keys")
    return tmp_path / "keys"


def files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    keys_command.add_arguments(parser)
    return keys_command.run(parser.parse_args(words))


def test_both_sides_load_keys_that_fit(directory):
    server, worker = load_server_keys(directory), load_peer_keys(directory)
    assert worker.server_public == server.public
    assert worker.public.decode() in (server.allow_list / "workers/worker.key").read_text()
    assert worker == load_peer_keys(directory / "worker")


def test_secrets_are_shown_neither_to_others_nor_in_logs(directory):
    assert directory.stat().st_mode & 0o777 == 0o700
    for path in (directory / "server.key_secret", directory / "worker/worker.key_secret"):
        assert path.stat().st_mode & 0o777 == 0o600
    for keys in (load_server_keys(directory), load_peer_keys(directory)):
        assert keys.secret.decode() not in repr(keys)


def test_a_workers_directory_holds_no_secret_of_anybody_else(directory):
    server_secret = load_server_keys(directory).secret.decode()
    assert set(files(directory / "worker")) == {"server.key", "worker.key_secret"}
    assert not any(server_secret in text for text in files(directory / "worker").values())


def test_keys_are_never_overwritten(directory):
    before = files(directory)
    with pytest.raises(KeyFileError, match=naming(directory / "server.key_secret")):
        create_keys(directory)
    with pytest.raises(KeyFileError, match=naming(directory / "worker")):
        add_keys(directory)
    (directory / "worker/worker.key_secret").unlink()
    (directory / "worker/server.key").unlink()
    (directory / "worker").rmdir()
    with pytest.raises(KeyFileError, match=naming("workers/worker.key")):
        add_keys(directory)
    assert files(directory).items() <= before.items()


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", ".hidden", "clients", "workers", "operators", "server.key", "a b"]
)
def test_a_name_that_is_no_directory_of_its_own_is_refused(directory, name):
    with pytest.raises(KeyFileError, match=r"name|exists"):
        add_keys(directory, name=name)


@pytest.mark.parametrize(
    ("file", "damage", "cause"),
    [
        ("server.key_secret", Path.unlink, "dist-net keys create"),
        ("server.key_secret", lambda path: path.write_text("nonsense"), "no valid key"),
        ("server.key_secret", lambda path: path.write_bytes(b"\xff\0" * 50), "no valid key"),
        ("server.key_secret", lambda path: path.chmod(0o640), "chmod 600"),
        (
            "server.key_secret",
            lambda path: path.write_text(path.with_name("server.key").read_text()),
            "no secret key",
        ),
        (
            "server.key_secret",
            lambda path: path.write_text(path.read_text().replace('"', '"#####', 1)),
            "no valid key",
        ),
        (
            "server.key_secret",
            lambda path: path.write_text(
                path.read_text().replace('secret-key = "', 'secret-key = "0')
            ),
            "do not belong together",
        ),
        ("workers/worker.key", Path.unlink, "no worker is admitted"),
        ("workers/worker.key", lambda path: path.write_text("nonsense"), "no valid key"),
    ],
)
def test_what_is_wrong_with_the_servers_files_is_named(directory, file, damage, cause):
    damage(directory / file)
    with pytest.raises(KeyFileError, match=cause):
        load_server_keys(directory)


@pytest.mark.parametrize("file", ["server.key", "worker.key_secret"])
def test_a_workers_missing_file_is_named(directory, file):
    (directory / "worker" / file).unlink()
    with pytest.raises(KeyFileError, match=file):
        load_peer_keys(directory / "worker")


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="file/keys"):
        create_keys(tmp_path / "file/keys")


def test_the_command_says_what_to_copy(tmp_path, capsys):
    assert run_command("create", str(tmp_path / "keys")) == 0
    assert f"scp -rp {tmp_path}/keys/worker WORKER_HOST:" in capsys.readouterr().out
    load_server_keys(tmp_path / "keys")


def test_the_command_makes_keys_for_each_role(tmp_path):
    keys = tmp_path / "keys"
    assert run_command("create", str(keys)) == 0
    for role in ("worker", "client", "operator"):
        assert set(files(keys / role)) == {"server.key", f"{role}.key_secret"}
        own = load_peer_keys(keys / role)
        assert own.public.decode() in (keys / f"{role}s" / f"{role}.key").read_text()
    assert load_peer_keys(keys, "worker") == load_peer_keys(keys / "worker")
    assert load_peer_keys(keys, "client") == load_peer_keys(keys / "operator")
    assert run_command("create", str(keys), "--client", "laptop", "--operator", "anna") == 0
    assert {path.name for path in (keys / "clients").iterdir()} == {"client.key", "laptop.key"}
    assert {path.name for path in (keys / "operators").iterdir()} == {"operator.key", "anna.key"}


def test_the_command_adds_workers_to_keys_that_exist(tmp_path):
    keys = tmp_path / "keys"
    assert run_command("create", str(keys), "--worker", "rack1", "--worker", "rack2") == 0
    server = load_server_keys(keys)
    assert run_command("create", str(keys), "--worker", "rack3") == 0
    assert load_server_keys(keys) == server
    assert {path.name for path in (server.allow_list / "workers").iterdir()} == {
        "rack1.key", "rack2.key", "rack3.key"
    }  # fmt: skip
    assert load_peer_keys(keys / "rack3").server_public == server.public
    with pytest.raises(KeyFileError, match=naming("keys/server.key_secret")):
        run_command("create", str(keys))


def test_the_command_shuts_out_by_name(tmp_path, capsys):
    for keys in (tmp_path / "keys", tmp_path / "run" / "keys"):
        assert run_command("create", str(keys), "--worker", "rack1", "--worker", "rack2") == 0
        where = keys if keys.parent == tmp_path else keys.parent
        assert run_command("revoke", str(where), "rack1") == 0
        assert "workers/rack1" in capsys.readouterr().out
        assert {path.name for path in (keys / "workers").iterdir()} == {"rack2.key"}
    with pytest.raises(KeyFileError, match=naming("'rack1'", "rack2")):
        run_command("revoke", str(where), "rack1")
