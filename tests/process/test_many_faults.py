"""Slow: a run that is disturbed two hundred times, and runs that are killed.

They need `-o faulthandler_timeout=0` beside `--slow`.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from journaled import assert_each_sample_once

Start = Callable[..., Any]
FAULTS = 200
EPOCHS = 150
SAMPLES = 60_000
ALIKE = 0.005  # in accuracy: half a point
pytestmark = pytest.mark.slow


def disturb(process_id: int, chance: random.Random) -> None:
    """Kills the process, or stops it for a while; it may have ended just now."""
    with contextlib.suppress(ProcessLookupError):
        if chance.random() < 0.7:
            os.kill(process_id, signal.SIGKILL)
            return
        os.kill(process_id, signal.SIGSTOP)
        time.sleep(chance.choice([0.2, 1.0, 5.0]))
        os.kill(process_id, signal.SIGCONT)


def result_of(command: Any) -> Any:
    """Its JSON; what is trained for long takes longer than other tests may."""
    command.process.wait(3600)
    return command.result()


def test_a_run_of_two_hundred_faults_is_as_good_as_one_of_none(
    start: Start, tmp_path: Path
) -> None:
    arguments = ("train", "fashion-mnist", "--epochs", str(EPOCHS), "--json")
    undisturbed = result_of(start(*arguments))
    seed = random.randrange(2**32)
    print(f"the faults' seed is {seed}")
    chance = random.Random(seed)
    run = tmp_path / "run"
    often = ("--restarts", str(FAULTS), "--checkpoint-every", "0.5")
    train = start(*arguments, "--run-dir", str(run), *often)
    train.report(lambda report: report["samples"] > 0)
    faults: Counter[str] = Counter()
    while faults.total() < FAULTS:
        time.sleep(chance.uniform(0.1, 1.0))
        assert train.process.poll() is None, f"it ended after {faults}: {train.stderr}"
        children = train.children
        if children:
            name = chance.choice(sorted(children))
            disturb(children[name], chance)
            faults[name] += 1
    report = result_of(train)
    print(f"{faults}; {report}; undisturbed: {undisturbed}")

    assert report["samples"] == EPOCHS * SAMPLES
    assert assert_each_sample_once(run, SAMPLES) == EPOCHS
    assert abs(report["test_accuracy"] - undisturbed["test_accuracy"]) <= ALIKE
    assert result_of(start("replay", str(run), "--json"))["matches"] is True
