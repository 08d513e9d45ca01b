"""The bench of the main job: what it compares."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import main_job
from benchmarks.errors import BenchmarkError


def arguments(*given: str) -> Namespace:
    parser = ArgumentParser()
    main_job.add_arguments(parser)
    return parser.parse_args(given)


def test_ratios_are_of_runs_that_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def checked_out(commit: str = "checkout") -> Iterator[Path]:
        yield Path(commit)

    rates = {"old": iter([100.0, 50.0, 200.0]), "checkout": iter([110.0, 75.0, 200.0])}
    order = []

    def run_of(directory: Path, seed: int) -> dict[str, float]:
        order.append((str(directory), seed))
        return {"samples_per_s": next(rates[str(directory)])}

    monkeypatch.setattr(main_job, "checked_out", checked_out)
    monkeypatch.setattr(main_job, "run_of", run_of)
    measured = main_job.measure(arguments("--commits", "old"), lambda _: None)
    assert order == [(name, pair) for pair in (1, 2, 3) for name in ("old", "checkout")]
    assert measured["ratios"] == {"samples_per_s": [1.1, 1.5, 1.0], "median": 1.1}
    assert [row["samples_per_s"] for row in measured["results"]] == [100, 110]


@pytest.mark.parametrize("given", [("--commits", "a", "b", "c"), ("--pairs", "0")])
def test_what_cannot_be_compared_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(BenchmarkError, match="one or two"):
        main_job.measure(arguments(*given), lambda _: None)


def test_a_commit_that_does_not_exist_is_named() -> None:
    with (
        pytest.raises(BenchmarkError, match="no-such-commit"),
        main_job.checked_out("no-such-commit"),
    ):
        pass
