"""How many cores there are."""

import argparse

import pytest

from dist_net.cluster.entry import available_cores
from dist_net.cluster.local_run import LocalRunSettings
from dist_net.cluster.serving_options import add_arguments


def test_where_the_system_keeps_no_list_of_cores_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert available_cores() == 6
    assert LocalRunSettings(2).threads == 2
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args([]).workers == 6
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1
