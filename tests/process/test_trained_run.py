"""A run that is started from Python."""

from pathlib import Path

import numpy as np

import dist_net
from dist_net.data import dataset_named
from dist_net.training.single_process import EpochResult


def test_a_run_from_python_is_reported_and_predicts_and_a_callback_ends_it(tmp_path: Path) -> None:
    seen: list[EpochResult] = []

    def end(result: EpochResult) -> bool:
        seen.append(result)
        return True

    run = dist_net.train(
        "digits",
        workers=1,
        epochs=100_000,
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
