"""A downloaded run's Python recipe: confirmed once, at a terminal or by --trust-recipe."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dist_net.cli import main
from dist_net.errors import CheckpointError, ModelSourceError, UntrustedRecipeError
from dist_net.ground.checkpoint import Checkpoint, write_checkpoint
from dist_net.nets import run_contents
from dist_net.nets.recipes.recipe import RecipeRecord, load_recipe
from dist_net.nets.recipes.recipe_files import sha256
from dist_net.nets.run_contents import confirm_recipe, read_run, recipe_code_digests
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.bases import base_called
from dist_net.training.run.run_options import RunOptions

COUNTING = Path(__file__).parents[2] / "recipes" / "counting.py"


class Terminal(io.StringIO):
    """A keyboard at which the user has typed something."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that shows that the recipe was run."""
    return tmp_path / "was run"


@pytest.fixture
def run(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that another user has trained, with the recipe of a file."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    recipe = tmp_path / "mine.py"
    recipe.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    recipe.write_text(recipe.read_text() + COUNTING.read_text())
    loaded = load_recipe(str(recipe))
    layout = loaded.recipe.model.layout
    names = loaded.recipe.load_dataset().class_names
    record = RecipeRecord(loaded.file_digests, names, loaded.recipe.fitting).to_json()
    weights = loaded.recipe.initial_weights(0)
    directory = RunDirectory(tmp_path / "run")
    directory.make()
    options = RunOptions(loaded.reference, recipe_files=record["files"])
    directory.begin(options.to_json(), loaded.files)
    write_checkpoint(
        directory.checkpoint,
        Checkpoint(loaded.reference, "", layout.shapes, 5, {}, {}, {}, weights, {}, record),
    )
    marker.unlink()
    return directory.path


COMMANDS = [
    ["predict", "RUN", "image.png"],
    ["evaluate", "RUN"],
    ["export", "RUN", "net.onnx"],
    ["replay", "RUN"],
    ["serve", "counts=RUN", "--workers", "1", "--http", "127.0.0.1:0"],
    ["train", "--resume", "--run-dir", "RUN"],
]


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_runs_it_without_a_terminal(
    words: list[str],
    run: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main([word.replace("RUN", str(run)) for word in words]) == 2
    said = capsys.readouterr().err
    assert "--trust-recipe" in said
    assert f"{run / 'recipe.py'}: SHA-256 {sha256((run / 'recipe.py').read_bytes())}" in said
    assert said.count("\n") == 1
    assert not marker.exists()


def test_it_runs_once_the_user_has_confirmed_it(
    run: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["evaluate", str(run), "--json"]) == 0
    assert marker.exists()
    assert json.loads(capfd.readouterr().out)["samples"] > 0
    monkeypatch.setattr("sys.stdin", None)
    assert main(["evaluate", str(run)]) == 0
    content = (run / "recipe.py").read_text() + "\n"
    (run / "recipe.py").write_text(content)
    assert main(["evaluate", str(run)]) == 2  # it is not the recipe that was trained with


@pytest.mark.parametrize("typed", ["n\n", "\n", "", "yess\n"])
def test_it_does_not_run_if_the_user_refuses(
    run: Path, marker: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    with pytest.raises(UntrustedRecipeError):
        confirm_recipe(run, is_confirmed=False)
    with pytest.raises(UntrustedRecipeError):
        read_run(run)
    assert not marker.exists()


def test_an_option_confirms_it_for_the_next_time_too(run: Path, marker: Path) -> None:
    confirm_recipe(run, is_confirmed=True)
    assert not marker.exists()
    read_run(run)
    assert marker.exists()


def test_a_question_shows_no_control_characters(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"recipe.py\x1b[2J": "0"}
    monkeypatch.setattr(run_contents, "recipe_code_digests", lambda _: files)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with pytest.raises(UntrustedRecipeError):
        confirm_recipe(run, is_confirmed=False)
    assert "\x1b" not in capsys.readouterr().err


def test_a_base_that_is_code_is_refused_before_it_is_run(run: Path, marker: Path) -> None:
    confirm_recipe(run, is_confirmed=True)
    with pytest.raises(ModelSourceError, match="Python code"):
        base_called(str(run), print)
    assert not marker.exists()


def test_only_python_recipes_are_confirmed(tmp_path: Path, run: Path) -> None:
    assert [*recipe_code_digests(run)] == ["recipe.py"]
    assert recipe_code_digests(run / "checkpoint.safetensors") == recipe_code_digests(run)
    (tmp_path / "text").write_text("no checkpoint")
    for other in (tmp_path, tmp_path / "none", tmp_path / "text"):
        assert recipe_code_digests(other) == {}


@pytest.mark.parametrize("reference", [["digits"], {"pictures": 1}, None, 5])
def test_a_checkpoint_whose_recipe_is_no_text_is_refused(tmp_path: Path, reference: object) -> None:
    file = tmp_path / "evil.safetensors"
    told = {"recipe": json.dumps(reference), "recipe_record": "{}"}
    save_file({"weights": np.zeros(2, np.float32)}, file, metadata=told)
    confirm_recipe(file, is_confirmed=False)
    with pytest.raises(CheckpointError):
        read_run(file)
