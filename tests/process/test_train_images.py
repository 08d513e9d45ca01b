"""``dist-net train FOLDER``: from images to a classifier that stands alone, and its report."""

import json
import shutil
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import dist_net
from dist_net import fit_image
from dist_net.errors import InterruptedRunError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipes.image_recipe import ImageRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos import image_report
from dist_net.photos.fine_tuning import usual_epochs
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_report import train_and_report
from dist_net.processes.terminal import plain_console
from dist_net.training.run.callbacks import EpochResult
from dist_net.training.run.local_run import REPORTED, LocalRunSettings, RunHost
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Applied

Start = Here = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]


@pytest.mark.main_path
def test_a_folder_becomes_a_run_that_needs_neither_the_photos_nor_their_folder(
    start: Start, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    report = start("train", str(photos), "--run-dir", str(run), "--json", packages=None).result()
    assert set(REPORTED) < report.keys()
    assert report["recipe"] == "photos"
    assert report["test_accuracy"] > 0.6
    told = json.loads((run / "report.json").read_text())
    assert told["accuracy"] == report["test_accuracy"]
    assert told["skipped"] == 1
    assert "circle/broken.jpg" in (run / "skipped.csv").read_text()
    assert [each["name"] for each in told["classes"]] == ["circle", "square", "triangle"]
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    if find_spec("matplotlib"):
        assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    record = read_checkpoint(run / "best.safetensors").recipe_record
    held_out = np.load(run / "held_out.npy")
    names = json.loads((run / "held_out.json").read_text())["names"]
    base = ImageRecipe.from_json(record["image_recipe"]).base
    for image, name in zip(held_out, names, strict=True):
        fitted = fit_image(photos / name, base.input_shape, base.fitting)
        np.testing.assert_array_equal(image, fitted, name)

    moved = tmp_path / "moved"
    shutil.move(run, moved)
    image = tmp_path / "one.jpg"
    shutil.copy(photos / "square" / "000.jpg", image)
    evaluated = start("evaluate", str(moved), "--json").result()
    assert evaluated["test_accuracy"] == report["test_accuracy"]
    assert evaluated["test_loss"] == pytest.approx(report["test_loss"], rel=1e-3)
    predicted = start("predict", str(moved), str(image), "--json").result()
    assert {each["label"] for each in predicted["predictions"]} == {"circle", "square", "triangle"}
    assert report["pushes_applied"] == 0  # no cluster trains a head
    assert "out of fold" in told["judged_on"] or "split off" in told["judged_on"]
    most = predicted["predictions"][0]["probability"]
    assert predicted["unknown"] is (most < record["calibration"]["threshold"])


def test_without_a_base_a_small_net_is_trained_and_a_run_of_it_is_a_base(
    start: Start, here: Here, photos: Path, tmp_path: Path
) -> None:
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    seen: list[EpochResult] = []
    trained = dist_net.train(
        photos, base="none", epochs=2, run_dir=run, callbacks=[seen.append], quiet=True
    )
    assert trained.report["samples"] == 2 * 29
    assert trained.history == seen
    assert seen[-1].epoch == 2
    images = np.zeros((2, *trained.model.input_shape), np.uint8)
    assert trained.predict(images).shape == (2, 3)

    asked = [
        "train",
        str(photos),
        "--base",
        str(run),
        "--fine-tune",
        "1",
        "--learning-rate",
        "0.01",
    ]
    chosen = "--learning-rate", "0.01", "--run-dir", str(tuned), "--json"
    report = start(*asked, *chosen).result()
    assert report["samples"] == 29
    assert json.loads((tuned / "report.json").read_text())["fine_tuned"] == 1
    assert read_checkpoint(tuned / "checkpoint.safetensors").settings["learning_rate"] == 0.01
    evaluated = here("evaluate", tuned, "--json")
    assert evaluated["test_accuracy"] == report["test_accuracy"]


def test_a_handful_of_images_goes_on_from_wherever_the_command_was_killed(
    start: Start, photos: Path, tmp_path: Path
) -> None:
    few, run = tmp_path / "few", tmp_path / "run"
    for name in ("circle", "square"):
        (few / name).mkdir(parents=True)
        for number in range(3):
            # Its bytes are no text, as on a disk of another system.
            shutil.copy(photos / name / f"{number:03}.jpg", few / name / f"{number}\udcff.jpg")
    (few / "circle" / "\udcff.txt").touch()
    asked = ["train", str(few), "--base", "none", "--epochs", "1", "--run-dir", str(run)]
    killed = start(*asked)
    killed.says("preparing images")
    killed.process.kill()
    killed.ends()
    report = start("train", "--resume", "--run-dir", str(run), "--json").result()
    assert report["samples"] == 4
    assert "circle/\\udcff.txt," in (run / "skipped.csv").read_text()
    assert (run / "report.html").exists()


@pytest.mark.main_path
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--base", "efficientnet-lite"], "did you mean efficientnet-lite0"),
        (["--listen", "tcp://127.0.0.1:0"], "--listen .*--fine-tune .*--base none"),
        (["--views", "0"], "views=0: expected at least 1"),
        (["--keep", "best"], "keeps_best=True.*validation"),
        (["--patience", "2"], "patience=2.*validation"),
        (["--group-by", "("], "group_by="),
        (["--validation", "1.5"], "validation=1.5: expected a share between 0 and 1"),
        (["--labels", "none.csv"], "labels .*none.csv: No such file"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    refuses: Callable[..., None], photos: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    refuses(said, "train", photos, "--run-dir", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_refused_after_its_images_were_tried_leaves_no_run(
    start: Start, tmp_path: Path
) -> None:
    for number in range(6):
        file = tmp_path / "few" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number} is no image")
    command = start("train", str(tmp_path / "few"), "--base", "none")
    assert command.ends() == 2
    command.says("few")
    assert not list((tmp_path / "c0" / "runs").iterdir())


def test_options_of_a_folder_are_not_taken_for_a_recipe(
    refuses: Callable[..., None], tmp_path: Path
) -> None:
    words = "train", "digits", "--fine-tune", "2", "--run-dir", tmp_path / "run"
    refuses("--fine-tune is for a folder of images", *words)


def test_the_same_folder_and_seed_give_the_same_head_and_report(
    start: Start, photos: Path, base: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in ("once", "again")]
    for run in runs:
        trained = start("train", str(photos), "--base", str(base), "--run-dir", str(run), "--json")
        trained.result()
        assert "pass --fine-tune auto" in trained.stderr
    for name in ("report.json", "report.html", "held_out.json"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    records = [read_checkpoint(run / "best.safetensors").recipe_record for run in runs]
    assert records[0]["calibration"] == records[1]["calibration"]
    weights = [dist_net.load(run).model.weights for run in runs]
    assert weights[0].tobytes() == weights[1].tobytes()


def test_a_weak_head_is_tuned_and_an_interrupt_chooses_the_better_net_so_far(
    start: Start, photos: Path, base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    asked = ["--base", str(base), "--fine-tune", "auto", "--rotate", "180", "--workers", "1"]
    tuning = start("train", str(photos), *asked, "--run-dir", str(run))
    tuning.says(r"head: .* \d+% right out of fold[^\n]*\n.*tuning .* \d+ minutes")
    tuning.says(r"epoch +\d+\.0: ")
    tuning.process.send_signal(signal.SIGINT)
    assert tuning.ends() == InterruptedRunError.exit_code
    assert "fine-tuning: on the same 7 images" in tuning.stderr
    found = dist_net.load(run)
    assert found.model.output_shape == (3,)
    judged = 36 if "the head is kept" in tuning.stderr else 7  # a head has seen the split
    assert found.evaluate().samples == judged

    report = start("train", "--resume", "--run-dir", str(run), "--workers", "1", "--json").result()
    assert report["epochs"] == usual_epochs(29)
    record = read_checkpoint(run / "best.safetensors").recipe_record
    assert json.loads(record["image_recipe"])["augmentation"]["rotation"] == 180
    assert "Variants of images" in (run / "report.html").read_text()


def test_a_tuned_run_is_tuned_again_after_a_label_was_corrected(
    start: Start, photos: Path, base: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, folder)
    asked = ["--base", str(base), "--fine-tune", "2", "--workers", "1", "--run-dir", str(run)]
    samples = start("train", str(folder), *asked, "--json").result()["samples"]
    resume = "train", "--resume", "--run-dir", str(run), "--workers", "1", "--json"
    unchanged = start(*resume)
    unchanged.result()
    assert "starts again" not in unchanged.stderr
    (folder / "circle" / "000.jpg").rename(folder / "square" / "corrected.jpg")
    again = start(*resume)
    assert again.result()["samples"] == samples
    assert "starts again" in again.stderr
    assert dist_net.load(run).evaluate().samples


def test_a_host_with_a_copy_of_the_folder_joins_the_tuning(
    start: Start, eventually: Eventually, photos: Path, base: Path, tmp_path: Path
) -> None:
    run, copy, other = tmp_path / "run", tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(photos, folder)
    (other / "square" / "003.jpg").write_bytes(b"other")
    asked = ["--base", str(base), "--fine-tune", "3000", "--workers", "1"]
    listening = "--listen", "tcp://127.0.0.1:0", "--run-dir", str(run)
    tuning = start("train", str(photos), *asked, *listening)
    token = tuning.says(r"    echo (\w+) \| dist-net join\n")[1]
    refused = {"expected the same folder": [], "square/003.jpg has": ["--data", str(other)]}
    for reason, data in refused.items():
        joining = start("join", token, "--workers", "1", *data)
        assert joining.ends() == 2
        assert reason in joining.stderr.splitlines()[-1]

    joined = start("join", token, "--workers", "1", "--data", str(copy))

    def workers() -> set[int]:
        records = read_journal(RunDirectory(run).journal).records()
        return {each.worker_id for each in records if isinstance(each, Applied)}

    eventually(lambda: len(workers()) == 2)
    joined.process.send_signal(signal.SIGINT)
    assert joined.ends() == InterruptedRunError.exit_code
    tuning.process.send_signal(signal.SIGINT)
    assert tuning.ends() == InterruptedRunError.exit_code


@pytest.mark.parametrize("base_name", ["eyes", "none"])
def test_a_run_without_images_holds_no_pixels_and_works_as_the_other(
    start: Start, photos: Path, base: Path, tmp_path: Path, base_name: str
) -> None:
    run, kept = tmp_path / "run", tmp_path / "kept"
    options = ["--base", str(base)] if base_name == "eyes" else ["--base", "none"]
    options += ["--epochs", "1", "--workers", "1"] if base_name == "none" else []  # reproducible
    for to, given in ((kept, []), (run, ["--no-images"])):
        start("train", str(photos), *options, *given, "--run-dir", str(to), "--json").result()
    rows = [image[len(image) // 2 :][:4].tobytes() for image in np.load(kept / "held_out.npy")]
    signs = (b"data:image", b"\x89PNG", b"JFIF", *rows)

    def images_in(folder: Path) -> set[str]:
        return {
            path.name
            for path in folder.rglob("*")
            if path.is_file() and any(each in path.read_bytes() for each in signs)
        }

    charts = {"report.png", "training.png", "confusion.png"}
    assert images_in(kept) - charts == {"held_out.npy", "report.html"}
    assert images_in(run) <= charts
    evaluated = [start("evaluate", str(each), "--json").result() for each in (run, kept)]
    assert evaluated[0]["test_accuracy"] == evaluated[1]["test_accuracy"]


def test_a_resumed_run_keeps_its_model_until_the_next_version_is_whole(
    photos: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = tmp_path / "photos", RunDirectory(tmp_path / "run")
    shutil.copytree(photos, folder)
    dist_net.train(folder, base=str(base), run_dir=run.path, quiet=True)
    files = [run.best, run.held_out, run.held_out.with_suffix(".json")]
    before = [file.read_bytes() for file in files]
    (folder / "circle" / "000.jpg").rename(folder / "square" / "corrected.jpg")

    def resume() -> None:
        options, local = ImageOptions.read(run.folder), LocalRunSettings(1)
        console = plain_console(quiet=True)
        train_and_report(options, RunHost(run, local, NoCluster(console)))

    class NoCluster(TrainingProgress):
        def __enter__(self) -> Self:
            pytest.fail("a head needs no cluster")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(image_report, "report_content", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resume()
    assert [file.read_bytes() for file in files] == before
    dist_net.load(run.path)
    resume()
    assert all(file.read_bytes() != old for file, old in zip(files, before, strict=True))


def test_corrected_labels_retrain_the_head_and_other_data_is_refused(
    start: Start, refuses: Callable[..., None], photos: Path, base: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, folder)
    start("train", str(folder), "--base", str(base), "--run-dir", str(run), "--json").result()
    before = json.loads((run / "report.json").read_text())
    (folder / "circle" / "000.jpg").rename(folder / "square" / "corrected.jpg")
    resumed = start("train", "--resume", "--run-dir", str(run), "--json")
    resumed.result()
    assert "features computed" not in resumed.stderr  # no pixels are new
    after = json.loads((run / "report.json").read_text())
    counts = [[each["images"] for each in report["classes"]] for report in (before, after)]
    assert counts == [[12, 12, 12], [11, 13, 12]]

    kept = {path: path.read_bytes() for path in run.rglob("*.json")}
    for given in ([photos], [folder, "--base", "none"]):
        refuses("", "train", *given, "--resume", "--run-dir", run)
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == kept

    (folder / "triangle").rename(folder / "pyramid")
    start("train", "--resume", "--run-dir", str(run), "--json").result()
    names = [each["name"] for each in json.loads((run / "report.json").read_text())["classes"]]
    assert names == ["circle", "pyramid", "square"]
