"""A run that is started from Python."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net.data import dataset_named
from dist_net.optim import Momentum
from dist_net.training.run.callbacks import EpochResult


@pytest.mark.main_path
def test_a_run_from_python_is_reported_and_predicts_and_a_callback_ends_it(tmp_path: Path) -> None:
    seen: list[EpochResult] = []

    def end(result: EpochResult) -> bool:
        seen.append(result)
        return result.epoch >= 20

    run = dist_net.train(
        "digits",
        workers=1,
        epochs=100_000,
        optimizer=Momentum(0.8),
        average_decay=0.9,
        tensorboard=True,
        run_dir=tmp_path / "run",
        callbacks=[end],
        quiet=True,
    )
    assert run.history == seen
    assert 1437 <= run.report["samples"] < 100_000 * 1437
    digits = dataset_named("digits")
    answers = run.predict(np.asarray(digits.test_inputs)).argmax(1)
    accuracy = float(np.mean(answers == digits.test_targets))
    assert accuracy > 0.5
    assert run.history[-1].accuracy is not None
    assert (run.path / "checkpoint.safetensors").exists()
    kinds = [file.parent.name for file in (run.path / "tensorboard").glob("*/events.*")]
    assert sorted(kinds) == ["test", "train"]


def servers_of(run: Path) -> list[int]:
    """The process ids of the run's parameter servers."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        words = list[bytes]()
        with suppress(OSError):  # it has ended meanwhile
            words = file.read_bytes().split(b"\0")
        if b"dist_net.training.run.parameter_server_process" in words and os.fsencode(run) in words:
            found.append(int(file.parent.name))
    return found


def test_a_server_that_dies_while_a_callback_takes_its_time_is_replaced_meanwhile(
    tmp_path: Path, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    directory = tmp_path / "run"
    killed: list[int] = []

    def kill_server(_: EpochResult) -> None:
        if not killed:
            killed.extend(servers_of(directory))
            os.kill(killed[0], signal.SIGKILL)
            eventually(lambda: set(servers_of(directory)) - {*killed})

    run = dist_net.train(
        *("digits",),
        workers=1,
        epochs=40,
        checkpoint_every_s=0.1,
        run_dir=directory,
        callbacks=[kill_server],
        quiet=True,
    )
    assert len(killed) == 1
    assert run.report["samples"] == 40 * 1437
