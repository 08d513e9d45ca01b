"""A cluster is compared with one process on the same samples, and each run is made once."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import convergence
from benchmarks.convergence import Case, VirtualCluster
from dist_net.data import Dataset
from dist_net.training.run.fit import SingleProcess

CASE = Case("classes", "adam", 0.001, 32, 120, (2, 3), samples=1000)


@pytest.fixture(autouse=True)
def random_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Fashion-MNIST, which may not be on this host, by noise."""

    def data(pixels: int, regression: bool) -> Dataset:
        assert not regression
        random = np.random.default_rng(0)
        size = 28 // pixels
        inputs, labels = random.integers(0, 256, (1100, size, size), np.uint8), np.arange(1100) % 10
        names = tuple("abcdefghij")
        return Dataset("noise", inputs[:1000], labels[:1000], inputs[1000:], labels[1000:], names)

    monkeypatch.setattr(convergence, "_data", data)
    monkeypatch.setitem(convergence.FIXED, "adam", CASE)


def measured(path: Path, *options: str) -> list[dict[str, Any]]:
    parser = ArgumentParser()
    convergence.add_arguments(parser)
    given = ["--cases", "adam", "--seeds", "1", "--runs", str(path)]
    arguments = parser.parse_args([*given, *options])
    results: list[dict[str, Any]] = convergence.measure(arguments, lambda _: None)["results"]
    return results


def test_a_run_that_was_kept_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs"
    words = "--consistency", "rounds", "async:1"
    made = measured(path, *words)
    assert [(each["mode"], each["workers"]) for each in made] == [
        *(("rounds", 2), ("rounds", 3), ("async:1", 2), ("async:1", 3))
    ]
    assert made[0]["updates"] < made[2]["updates"]
    monkeypatch.delattr(convergence, "run_of")
    assert measured(path, *words) == made


def test_the_reference_is_one_process_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = []

    class Kept(VirtualCluster):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            clusters.append(self)

    monkeypatch.setattr(convergence, "VirtualCluster", Kept)
    convergence.run_of(CASE, 1, 3, "rounds:7", 0.5)
    alone = SingleProcess(*convergence.prepared(CASE), seed=3)
    for _ in alone.epochs():
        pass
    np.testing.assert_array_equal(clusters[0]._run.store.weights, alone.weights)
