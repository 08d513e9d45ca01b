"""A cluster is compared with one process on the same samples, and each run is made once."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import convergence
from benchmarks.convergence import Case, VirtualCluster
from dist_net.training.run.single_process import SingleProcess


def measured(path: Path, *options: str) -> list[dict[str, Any]]:
    parser = ArgumentParser()
    convergence.add_arguments(parser)
    given = ["--tasks", "tuning", "--recipes", "sgd", "--seeds", "1", "--runs", str(path)]
    arguments = parser.parse_args([*given, *options])
    results: list[dict[str, Any]] = convergence.measure(arguments, lambda _: None)["results"]
    return results


def test_a_run_that_was_kept_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs"
    words = "--workers", "2", "--consistency", "rounds", "async:1"
    made = measured(path, *words)
    assert [(each["mode"], each["workers"]) for each in made] == [
        *(("rounds", 1), ("rounds", 2), ("async:1", 1), ("async:1", 2))
    ]
    assert made[0]["points"] == made[0]["loss_ratio"] - 1 == 0
    assert made[1]["updates"] < made[3]["updates"]
    monkeypatch.delattr(convergence, "_run")
    assert measured(path, *words) == made


def test_the_reference_is_one_process_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = []

    class Kept(VirtualCluster):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            clusters.append(self)

    monkeypatch.setattr(convergence, "VirtualCluster", Kept)
    case = Case("tuning", "adam", "rounds", None, 1, seed=3)
    convergence._run(case)
    loaded, dataset = convergence._loaded(case)
    alone = SingleProcess(loaded.recipe, dataset, seed=3)
    for _ in alone.epochs():
        pass
    np.testing.assert_array_equal(clusters[0]._run.store.weights, alone.weights)


def test_a_worker_that_is_replaced_after_each_lease_costs_no_sample() -> None:
    figures = convergence._run(Case("tuning", "adam", "rounds", None, 3, seed=0, churn=True))
    whole = convergence._run(Case("tuning", "adam", "rounds", None, 3, seed=0))
    # One figure for each half epoch; the first round that ends in a whole epoch passes two.
    assert len(figures["loss"]) == len(whole["loss"]) == 2 * 12 - 1
