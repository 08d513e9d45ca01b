"""A run's directory is one process's at a time, and what a killed one left in it is removed."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.errors import CheckpointError, RunDirectoryError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipes.image_recipe import IMAGES, RECIPE_JSON, ImageRecipe, small_base
from dist_net.nets.run_contents import calibration_of, read_held_out
from dist_net.nets.run_directory import RunDirectory, suggest_runs
from image_runs import write_run
from naming import naming


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "digits", datetime(2026, 11, 25))


def test_the_copy_of_the_latest_term_is_resumed(directory: RunDirectory) -> None:
    other = RunDirectory(directory.path.with_name("other"))
    second = directory.copy_of_term(2)
    third = second.copy_of_term(11)
    assert third.path.name == "run-term-11"
    for written_s, run in enumerate([directory, second, third, other, other.copy_of_term(2)]):
        run.make()
        run.options.write_text('{"recipe": "digits"}')
        run.checkpoint.touch()
        os.utime(run.checkpoint, (written_s, written_s))
    assert directory.latest_copy is directory  # the others may be runs of their own
    for copy in (second, third):
        copy.standbys.touch()
    assert directory.latest_copy.path == third.path
    with pytest.raises(RunDirectoryError, match=naming("run-term-2")):
        directory.copy_of_term(2)


def test_a_copy_of_a_run_on_a_folder_is_resumed_before_it_has_a_model(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    copy = directory.copy_of_term(2)
    for written_s, run in enumerate([directory, copy]):
        run.make()
        run.folder.touch()
        os.utime(run.folder, (written_s, written_s))
    copy.standbys.touch()
    assert directory.latest_copy.path == copy.path


def test_a_second_run_in_a_directory_is_refused_and_told_whose_it_is(
    directory: RunDirectory,
) -> None:
    again = RunDirectory(directory.path)
    with (
        directory.locked(),
        pytest.raises(RunDirectoryError, match=naming(f"process {os.getpid()}", "--run-dir")),
        again.locked(patience_s=0.1),
    ):
        pass
    with again.locked():
        pass


def test_who_is_at_a_run_is_said_rather_than_that_there_is_one(directory: RunDirectory) -> None:
    directory.write(directory.metrics, "{}\n")
    with directory.locked(), pytest.raises(RunDirectoryError, match=f"process {os.getpid()}"):
        RunDirectory.create(directory.path, "digits", datetime(2026, 11, 25))
    with pytest.raises(RunDirectoryError, match=naming("--run-dir", "--resume")):
        RunDirectory.create(directory.path, "digits", datetime(2026, 11, 25))


def test_a_child_that_inherits_the_lock_holds_it_when_its_parent_is_gone(
    directory: RunDirectory,
) -> None:
    with directory.locked():
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=directory.lock_descriptors,
        )
    with (
        child,
        pytest.raises(RunDirectoryError, match=naming(f"process {os.getpid()}", "--run-dir")),
        directory.locked(),
    ):
        pass
    with directory.locked():
        pass


def test_a_run_on_a_folder_is_gone_on_with_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = RunDirectory.create(None, "digits", datetime(2026, 11, 25))
    trained.write(trained.checkpoint, "weights")
    os.utime(trained.checkpoint, (0, 0))
    begun = RunDirectory.create(None, "photos", datetime(2026, 11, 25))
    begun.write(begun.folder, "{}")
    assert RunDirectory.open(begun.path).path == begun.path
    assert RunDirectory.newest(has_model=False).path == begun.path
    assert RunDirectory.newest().path == trained.path


def test_a_child_can_inherit_the_lock(directory: RunDirectory) -> None:
    with directory.locked():
        assert directory.lock_descriptors


def test_a_file_of_a_run_is_the_old_one_until_the_new_one_is_whole(
    directory: RunDirectory,
) -> None:
    directory.write(directory.report, "old")

    def write_half() -> None:
        with directory.replacing(directory.report) as file:
            file.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert directory.report.read_text() == "old"


def test_a_file_that_cannot_be_written_is_a_clear_line(directory: RunDirectory) -> None:
    directory.report.mkdir()
    for write in (
        lambda: directory.write(directory.report, "new"),
        lambda: directory.save(directory.report, np.zeros(2)),
    ):
        with pytest.raises(RunDirectoryError, match=naming("Is a directory")):
            write()


def test_a_file_name_that_is_no_text_can_be_told_of(directory: RunDirectory) -> None:
    directory.write(directory.skipped, os.fsdecode(b"\xff.txt"))
    assert directory.skipped.read_text() == "\\udcff.txt"


DEEP = "[" * 100_000


@pytest.mark.parametrize("temperature", [math.inf, 1e-300, 0, -1, math.nan, "1", []])
def test_a_damaged_calibration_is_a_clear_line(temperature: object, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(RunDirectory(write_run(tmp_path / "colours")).best)
    told = {"temperature": temperature, "threshold": 0.5, "precision": 0.95}
    record = checkpoint.recipe_record | {"calibration": told}
    with pytest.raises(CheckpointError, match="temperature"):
        calibration_of(replace(checkpoint, recipe_record=record))


@pytest.mark.parametrize("labels", ["[1e999]", f"[{10**30}]", "[7]", "[0, 1]", "{}", DEEP])
def test_damaged_held_out_images_are_a_clear_line(directory: RunDirectory, labels: str) -> None:
    recipe = ImageRecipe("photos", small_base(), ("a", "b")).loaded()
    directory.save(directory.held_out, np.zeros((1, *recipe.recipe.input_shape), np.uint8))
    directory.write(directory.held_out.with_suffix(".json"), f'{{"labels": {labels}}}')
    with pytest.raises(RunDirectoryError, match=naming("held_out.npy")):
        read_held_out(directory.path, recipe)


@pytest.mark.parametrize(("given", "hint"), [("flower", "did you mean"), ("zzz", "cars")])
def test_a_mistyped_run_is_answered_with_the_runs_nearby(
    given: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert suggest_runs(Path(given)) == ""
    for age_s, name in enumerate(["cars", "flowers", "runs/flats", "old/boats"]):
        checkpoint = RunDirectory(tmp_path / name).checkpoint
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        os.utime(checkpoint, (1e9 - age_s, 1e9 - age_s))
    assert hint in suggest_runs(Path(given))
    assert "flowers" in suggest_runs(Path(given))
    assert "boats" in suggest_runs(tmp_path / "old")
    assert suggest_runs(tmp_path / "zzz").index("cars") < suggest_runs(tmp_path / "zzz").index(
        "flowers"
    )


@pytest.mark.parametrize(
    ("options", "has_best", "file"),
    [
        ({"keeps_best": True}, True, "best"),
        ({"keeps_best": True}, False, "checkpoint"),
        ({"keeps_best": False}, True, "checkpoint"),  # of an earlier start of the run
        ({"keeps_best": None}, True, "checkpoint"),
        ({"keeps_best": False, "patience": 3}, True, "best"),  # as earlier releases wrote it
        (None, True, "best"),  # copied without its options
        ({"recipe": IMAGES, "keeps_best": None}, True, "best"),  # without folder.json
    ],
)
def test_the_options_decide_which_weights_a_run_stands_for(
    directory: RunDirectory, options: dict[str, Any] | None, has_best: bool, file: str
) -> None:
    if options is not None:
        of_images = {RECIPE_JSON: b"{}"} if options.get("recipe") == IMAGES else {}
        directory.begin(json.dumps({"recipe": "digits", **options}), of_images)
    directory.write(directory.checkpoint, "last")
    if has_best:
        directory.write(directory.best, "best")
    assert directory.model_file == getattr(directory, file)


def test_damaged_options_name_no_weights_and_hide_no_other_run(directory: RunDirectory) -> None:
    directory.write(directory.checkpoint, "last")
    for damage in (b"[5", b"[]", b"{}", b"\xff"):
        directory.options.write_bytes(damage)
        with pytest.raises(RunDirectoryError, match=naming(directory.options)):
            directory.model_file  # noqa: B018
    other = RunDirectory.create(directory.path.with_name("other"), "digits", datetime(2026, 11, 25))
    other.write(other.checkpoint, "last")
    assert str(other.path) in suggest_runs(directory.path.with_name("x"))
