"""``dist-net replay``: a run of processes is computed again, and compared with what it was."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_net.checkpoint import read_checkpoint
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import sha256_of

Start = Here = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the run directory will be."""
    return tmp_path / "run"


def test_a_run_is_replayed_and_stops_at_any_version(start: Start, here: Here, run: Path) -> None:
    start("train", "digits", "--epochs", "3", "--run-dir", str(run), "--json").result()
    trained = read_checkpoint(run / "checkpoint.safetensors")
    replayed = start("replay", str(run), "--json")
    version = trained.version
    assert replayed.result() == {
        "version": version,
        "weights_sha256": sha256_of(trained.weights).hex(),
        "matches": True,
    }
    assert f"{version} updates" in replayed.stderr

    halfway = here("replay", run, "--to", version // 2, "--json")
    assert halfway["version"] == version // 2
    left = read_checkpoint(run / f"replay-{halfway['version']}.safetensors")
    assert sha256_of(left.weights).hex() == halfway["weights_sha256"]

    options = run / "options.json"
    options.write_text(options.read_text().replace('"optimizer": null', '"optimizer": "sgd"'))
    with_another_rule = start("replay", str(run), "--json")
    assert with_another_rule.ends() == 1
    assert '"matches": false' in with_another_rule.stdout
    with_another_rule.says(rf"at version {version}; .* is 0\.")


@pytest.mark.parametrize("mode", ["rounds", "async", "bsp"])
def test_a_run_whose_server_was_killed_goes_on_and_is_replayed(
    start: Start, here: Here, run: Path, mode: str
) -> None:
    train = start(
        "train",
        "digits",
        "--epochs",
        "100000",
        "--consistency",
        mode,
        "--checkpoint-every",
        "0.2",
        "--sync",
        "0.1",
        "--run-dir",
        str(run),
    )
    train.report(lambda report: (report["checkpoint_version"] or 0) > 0)
    for process_id in (train.children["server"], train.process.pid):
        os.kill(process_id, signal.SIGKILL)
    train.ends()
    crashed = read_journal(run / "journal")
    checkpoint = read_checkpoint(run / "checkpoint.safetensors")
    assert crashed.fault is None
    assert crashed.version >= checkpoint.version > 0

    epochs = str(checkpoint.ledger["next_epoch"] + 1)
    start("train", "--resume", "--run-dir", str(run), "--epochs", epochs, "--json").result()
    journal = read_journal(run / "journal")
    assert [each.version for each in journal.starts()] == [0, checkpoint.version]
    result = here("replay", run, "--json")
    trained = read_checkpoint(run / "checkpoint.safetensors")
    assert result["weights_sha256"] == sha256_of(trained.weights).hex()
    assert result["matches"] is True
