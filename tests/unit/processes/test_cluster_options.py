"""Where processes run, by the command line."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

import pytest

from dist_net.errors import SettingError
from dist_net.processes.cluster_options import add_cluster_arguments, ray_address, worker_count
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
