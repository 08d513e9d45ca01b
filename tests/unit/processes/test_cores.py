"""How many cores there are."""

import argparse
from pathlib import Path

import pytest

from dist_net.processes.equipment import available_cores, cores_beside_server, quotas
from dist_net.processes.launcher import LocalProcesses
from dist_net.serving.gateway.serving_options import add_arguments


def test_where_the_system_keeps_no_list_of_cores_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert available_cores() == 6
    assert LocalProcesses(Path()).cores_each(2) == 2
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args([]).workers == 6
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1


def cgroups(directory: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """What a process is told of its cgroups, and a tree of these."""
    told, root = directory / "cgroup", directory / "mounted"
    told.write_text(own)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return told, root


def test_a_quota_holds_for_all_that_lies_in_its_cgroup(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}
    assert list(quotas(*cgroups(tmp_path, "0::/a/b\n", files))) == [1.5]


def test_the_first_version_of_cgroups_has_quotas_too(tmp_path: Path) -> None:
    own = "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n"
    files = {
        "cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
        "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert list(quotas(*cgroups(tmp_path, own, files))) == [3.0]


def test_a_cgroup_that_is_seen_from_within_a_container_is_the_root(tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000\n"}
    assert list(quotas(*cgroups(tmp_path, "0::/outside/it\n", files))) == [2.0]


@pytest.mark.parametrize("content", ["", "max", "nonsense 1", "100000 0"])
def test_what_is_no_quota_is_none(tmp_path: Path, content: str) -> None:
    assert list(quotas(*cgroups(tmp_path, "0::/a\n", {"a/cpu.max": content}))) == []


def test_a_quota_of_one_core_and_a_half_is_one_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, root = cgroups(tmp_path, "0::/a\n", {"a/cpu.max": "150000 100000\n"})
    monkeypatch.setattr("dist_net.processes.equipment.OWN_CGROUPS", told)
    monkeypatch.setattr("dist_net.processes.equipment.CGROUPS", root)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("nodes", "workers", "each"),
    [
        ([2], 1, 1),
        ([2], 2, 0),
        ([0, 2, 2], 3, 1),
        ([0, 2, 2], 4, 0),
        ([5], 2, 2),
        ([4, 4], 2, 3),
        ([3, 3, 3], 2, 3),
        ([16, 16], 4, 7),
        ([], 1, 0),
    ],
)
def test_workers_share_the_cores_of_nodes_with_a_server(
    nodes: list[int], workers: int, each: int
) -> None:
    assert cores_beside_server(nodes, workers) == each
