"""Where processes run, by the command line."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

import pytest

from dist_net.errors import SettingError
from dist_net.processes.cluster_options import (
    add_cluster_arguments,
    add_server_arguments,
    ray_address,
    server_given,
    worker_count,
)
from dist_net.wire.security import WORKER, add_keys, create_keys, load_peer_keys
from dist_net.wire.token import TRAINING
from naming import naming


def parsed(*words: str) -> Namespace:
    parser = ArgumentParser()
    add_cluster_arguments(parser)
    return parser.parse_args(words)


def test_workers_are_a_number_or_as_many_as_there_is_room_for() -> None:
    assert (worker_count("0"), worker_count("12"), worker_count("auto")) == (0, 12, None)
    with pytest.raises(ArgumentTypeError, match=naming(-1, 0)):
        worker_count("-1")


def test_by_default_processes_are_of_this_host() -> None:
    assert ray_address(parsed(), 2) is None


def test_what_only_a_cluster_has_is_refused_without_one() -> None:
    with pytest.raises(SettingError, match=naming("--workers auto", "--cluster ray")):
        ray_address(parsed(), None)
    with pytest.raises(SettingError, match=naming("--address a:1", "--cluster ray")):
        ray_address(parsed("--address", "a:1"), 2)


def test_a_server_is_named_by_its_address_and_keys_or_by_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    add_server_arguments(parser, "server", "a server")
    address, keys = "tcp://192.0.2.1:5", tmp_path / "keys"
    assert server_given(parser.parse_args(["--connect", address]), TRAINING) == (address, None)
    create_keys(keys)
    add_keys(keys, WORKER)
    given = parser.parse_args(["--connect", address, "--keys", str(keys)])
    assert server_given(given, TRAINING) == (address, load_peer_keys(keys))
    with pytest.raises(SystemExit):
        parser.parse_args(["TOKEN", "--connect", address])
    assert "--connect" in capsys.readouterr().err
