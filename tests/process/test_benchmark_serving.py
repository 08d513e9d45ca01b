"""The cases of ``scripts/bench serving`` that start pools, on a small net, and for a moment."""

from pathlib import Path

import pytest

from benchmarks import load, serving
from benchmarks.served import CONVOLUTIONS, Net, write_net


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return write_net(CONVOLUTIONS, tmp_path / CONVOLUTIONS)


def test_both_pools_are_measured_beside_the_engine(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "WARM_UP_S", 0.2)
    monkeypatch.setattr(serving, "ROUNDS", 1)
    monkeypatch.setattr(serving, "BATCHES_RAMP_S", 0.2)
    said: list[str] = []
    found = serving.darknet53_cases(net, said.append, 0.02)
    assert said == ["round 1 of 1: darknet53"]
    rows = {name: each.row for name, each in found.items()}
    assert {name: (row["workers"], row["threads"]) for name, row in rows.items()} == {
        "2_workers": (2, 1),
        "2_threads": (1, 2),
    }
    assert all(each.share > 0 and each.row["p50_ms"] > 0 for each in found.values())
