"""``dist-net predict``: folders of images, rows of numbers, and where the outputs go."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_net.cli import main
from dist_net.ground.printable import PrintableFormatter
from dist_net.nets.architecture import RecipeArchitecture
from dist_net.nets.sources import named_source
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nn import Dense, Model, Sequential
from dist_net.nn.inference import prepare
from image_runs import SIDE, write_run

DIGITS = RecipeArchitecture("digits", "digits", ())


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that doubles three numbers and adds one."""
    model = Model(Sequential(Dense(3)), (3,), "mse", np.float32)
    weights = np.concatenate([2 * np.eye(3).ravel(), np.ones(3)]).astype(np.float32)
    found = FoundModel(model, DIGITS, (), prepare(model, weights), "key", lambda: weights)

    class Source:
        def read(self) -> FoundModel:
            return found

    monkeypatch.setattr(named_source, "model_source", lambda *_, **__: Source())
    return "plane"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,c\n1,2,3\n-1,0,0.5\n")
    return path


OUTPUTS = [[3.0, 5.0, 7.0], [-1.0, 1.0, 2.0]]


def test_numbers_are_predicted_for_rows(
    plane: str, rows: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", plane, str(rows)]) == 0
    assert capfd.readouterr().out == "3,5,7\n-1,1,2\n"
    assert main(["predict", plane, str(rows), "--json"]) == 0
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert answers == [
        {"row": f"{rows}:{number}", "values": output} for number, output in enumerate(OUTPUTS)
    ]


@pytest.mark.parametrize("name", ["out.npy", "out.csv"])
def test_outputs_of_all_files_are_written_to_one(
    plane: str, rows: Path, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "more.npy", np.zeros((1, 3)))
    output = tmp_path / name
    files = [str(rows), str(tmp_path / "more.npy")]
    assert main(["predict", plane, *files, "--output", str(output)]) == 0
    assert not capfd.readouterr().out
    written = np.load(output) if name == "out.npy" else np.loadtxt(output, delimiter=",")
    np.testing.assert_allclose(written, [*OUTPUTS, [1, 1, 1]])


def test_what_a_model_of_numbers_cannot_predict_is_refused_with_what_it_can(
    plane: str, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["photo.png"], [str(rows), "--output", "o.txt"], ["a.png", "--output", "o.npy"]):
        assert main(["predict", plane, *words]) == 2
        assert ".csv" in capfd.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", plane, str(tmp_path / "empty")]) == 2
    assert ".png" in capfd.readouterr().err


def test_a_folder_is_all_its_images_and_rows_are_classified_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(write_run(tmp_path / "my run"))
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.png", "deeper/a.JPG", ".hidden.png"):
        Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(folder / name)
    (folder / "notes.txt").touch()
    assert main(["predict", run, str(folder), "--json"]) == 0
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [each["image"] for each in answers] == [
        str(folder / "b.png"),
        str(folder / "deeper/a.JPG"),
    ]
    red = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 255
    np.save(tmp_path / "red.npy", red)
    assert main(["predict", run, str(tmp_path / "red.npy"), "--json", "--top", "1"]) == 0
    (answer,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert (answer["row"], answer["unknown"]) == (f"{tmp_path / 'red.npy'}:0", False)
    assert answer["predictions"][0]["label"] == "red"
    assert answer["predictions"][0]["probability"] == pytest.approx(2 / 3, abs=1e-3)


def test_the_answers_for_a_folder_are_written_to_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, folder, output = write_run(tmp_path / "run"), tmp_path / "a, b", tmp_path / "answers.csv"
    folder.mkdir()
    for name, colour in (("green.png", (0, 255, 0)), ("grey.png", (99, 99, 99))):
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / name)
    (folder / "broken\udcff.png").write_text("none")
    assert main(["predict", str(run), str(folder), "--output", str(output)]) == 1
    shown = capfd.readouterr()
    assert not shown.out
    assert "broken" in shown.err
    text = output.read_text(encoding="utf-8", errors="surrogateescape")
    broken, green, grey = csv.DictReader(text.splitlines())
    assert green["image"] == str(folder / "green.png")
    assert (green["answer"], green["label"], green["error"]) == ("green", "green", "")
    assert float(green["probability"]) == pytest.approx(2 / 3, abs=1e-3)
    assert grey["answer"] == "unknown"
    assert float(grey["probability"]) == pytest.approx(1 / 3, abs=1e-3)
    assert broken["image"] == str(folder / "broken\udcff.png")
    assert "broken" in broken["error"]
    assert broken["answer"] == ""


def test_a_warning_gives_a_terminal_nothing_to_obey() -> None:
    record = logging.makeLogRecord({"msg": "name=%s", "args": ("a\x1b[31mb\x9b",)})
    assert PrintableFormatter("%(message)s").format(record) == "name=a\\x1b[31mb\\x9b"
