"""People are warned once of what lasts, told when it is over, and reminded of it at the end."""

from typing import Any

import pytest

from dist_net.training.run.training_progress import WARNINGS, RunNotices, Silence

QUIET: dict[str, Any] = dict.fromkeys(WARNINGS) | {"term": 1, "events": []}


def said_of(*reports: dict[str, Any]) -> tuple[list[str], list[str]]:
    said: list[str] = []
    notices = RunNotices(said.append)
    for report in reports:
        notices.notify_changes(QUIET | report)
    return said, notices.warnings


def event(number: int, host: str, what: str, processes: int = 1, reason: str = "") -> Any:
    return {
        "number": number,
        "host": host,
        "what": what,
        "processes": processes,
        "reason": reason,
    }


def test_each_event_of_a_host_is_said_once_with_the_number_of_its_workers() -> None:
    joined = [event(0, "a", "joined"), event(1, "b", "joined", 4), event(2, "a", "joined")]
    lost = event(3, "b", "lost", 4, "silent for 1.6 s")
    restarted = {"term": 2, "events": [event(0, "b", "joined", 4)]}
    said, _ = said_of(
        {"events": joined}, {"events": joined}, {"events": [*joined, lost]}, restarted, restarted
    )
    assert said == [
        "a: 2 workers joined",
        "b: 4 workers joined",
        "b: 4 workers lost: silent for 1.6 s",
        "b: 4 workers joined",
    ]


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


def test_a_slow_exchange_is_said_once_whichever_worker_is_slowest() -> None:
    slow = [
        f"an exchange with {worker} on {host} takes {seconds} s"
        for worker, host, seconds in (
            *(("worker-1", "gold", 0.1), ("worker-0", "silver", 2)),
            *(("worker-2", "an unknown host", 1e-05), ("worker-0", "silver", 0.25)),
        )
    ]
    said, last = said_of(*({"worker_warning": each} for each in slow))
    assert (said, last) == (slow[:1], slow[-1:])
    said, _ = said_of({"worker_warning": slow[0]}, {"worker_warning": "1 worker computes nothing"})
    assert len(said) == 2


def test_a_silence_and_its_end_are_said_once_each() -> None:
    said: list[str] = []
    silence = Silence(said.append, "it answers again")
    silence.ends()
    for _ in range(2):
        silence.begins("it does not answer")
    for _ in range(2):
        silence.ends()
    assert said == ["it does not answer", "it answers again"]
