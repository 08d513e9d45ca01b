"""People are warned once of what lasts, told when it is over, and reminded of it at the end."""

from typing import Any

import pytest

from dist_net.training.run.training_progress import WARNINGS, RunWarnings

QUIET: dict[str, Any] = dict.fromkeys(WARNINGS)


def said_of(*reports: dict[str, Any]) -> tuple[list[str], list[str]]:
    said: list[str] = []
    warnings = RunWarnings(said.append)
    for report in reports:
        warnings.notify_changes(QUIET | report)
    return said, warnings.last


def test_an_error_is_said_once_until_it_is_over_or_another() -> None:
    full = {"checkpoint_error": "no space left for 20 bytes"}
    fuller = {"checkpoint_error": "no space left for 30 bytes"}
    said, last = said_of({}, full, fuller, {"checkpoint_error": "read-only"}, {}, {}, full)
    assert said == [
        "no space left for 20 bytes",
        "read-only",
        "checkpoints can be written again",
        "no space left for 20 bytes",
    ]
    assert last == ["no space left for 20 bytes"]


def test_a_journal_and_a_checkpoint_are_told_apart_and_both_kept_for_the_end() -> None:
    said, last = said_of({"journal_error": "a"}, {"journal_error": "a", "checkpoint_error": "b"})
    assert said == ["a", "b"]
    assert sorted(last) == ["a", "b"]


@pytest.mark.parametrize("kind", ["loss_warning", "worker_warning"])
def test_a_rise_of_the_loss_is_warned_of_once_and_kept_as_it_was_last(kind: str) -> None:
    risen = [{kind: f"the loss has risen to {loss}"} for loss in (13, 14, 15)]
    said, last = said_of(*risen[:2], {}, risen[2])
    assert said == ["the loss has risen to 13"]
    assert last == ["the loss has risen to 15"]
