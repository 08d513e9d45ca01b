"""What a number of workers costs in accuracy is measured in pieces, and each run is made once."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks import convergence


def measured(path: Path, *options: str) -> list[dict[str, Any]]:
    parser = ArgumentParser()
    convergence.add_arguments(parser)
    given = ["--recipe", "digits", "--epochs", "1", "--optimizers", "adam", "--runs", str(path)]
    arguments = parser.parse_args([*given, *options])
    results: list[dict[str, Any]] = convergence.measure(arguments, lambda _: None)["results"]
    return results


def test_a_run_that_was_kept_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs"
    first = measured(path, "--workers", "6", "--consistency", "auto", "--seeds", "1")
    assert first[0]["staleness_mean"] < 4
    more = "--workers", "6", "--consistency", "auto", "bsp", "--seeds", "1"
    made = measured(path, *more)
    assert [each["consistency"] for each in made] == ["auto", "bsp"]
    assert (made[0], made[1]["staleness_mean"]) == (first[0], 0)
    monkeypatch.delattr(convergence, "_run")
    assert measured(path, *more) == made


def test_a_case_is_the_median_of_its_seeds(tmp_path: Path) -> None:
    of_two = "--workers", "1", "--consistency", "async", "--seeds", "2"
    [case] = measured(tmp_path / "runs", *of_two)
    assert case["lowest"] < case["test_accuracy"] < case["highest"]
