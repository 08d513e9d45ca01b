"""Editors and type checkers see the public names: scripts of users, as an installed package."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from dist_net.optim import Optimizer
from dist_net.photos.image_options import ImageOptions
from dist_net.python.train_by_processes import RecipeKeywords, TrainKeywords
from dist_net.training.run.run_options import RunOptions

SCRIPTS = sorted((Path(__file__).parents[1] / "user_scripts").glob("*.py"))
MISTAKES = """
import dist_net
from dist_net import nn

dist_net.nonsense()
nn.Dens(10)
dist_net.train("digits", epochs="three")
dist_net.train("digits", epoch=3)
"""
CHECKERS = {
    "pyright": ["--pythonpath", sys.executable],
    "mypy": ["--strict", "--python-executable", sys.executable],
}


def errors_of(checker: str, directory: Path) -> list[str]:
    """The errors in a directory's scripts, outside the checkout and its settings."""
    names = [path.name for path in sorted(directory.glob("*.py"))]
    program = Path(sys.executable).with_name(checker)
    command = [program, *CHECKERS[checker], *names]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    assert printed.returncode in (0, 1), printed.stdout + printed.stderr
    return [line for line in printed.stdout.splitlines() if " error: " in line]


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_names_and_options_are_errors_and_scripts_of_users_have_none(
    checker: str, tmp_path: Path
) -> None:
    """Together, because a checker takes seconds to read the package."""
    assert len(SCRIPTS) == 7
    for script in SCRIPTS:
        (tmp_path / script.name).write_text(script.read_text())
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    errors = errors_of(checker, tmp_path)
    assert [each for each in errors if "mistakes.py:" not in each] == []
    lines = {each.partition("mistakes.py:")[2].split(":")[0] for each in errors}
    assert lines == {"5", "6", "7", "8"}


@pytest.mark.parametrize(
    "name", ["differentiate", "fit_a_model", "own_layer_and_cluster", "use_a_model"]
)
def test_the_scripts_run(name: str, tmp_path: Path) -> None:
    (script,) = [path for path in SCRIPTS if path.stem == name]
    subprocess.run([sys.executable, script], check=True, capture_output=True, cwd=tmp_path)


def test_the_options_of_train_are_those_of_a_run() -> None:
    of_run = get_type_hints(RunOptions)
    for name in "recipe", "recipe_files", "data":
        del of_run[name]
    of_run["optimizer"] |= Optimizer
    assert get_type_hints(RecipeKeywords) == of_run
    of_images = get_type_hints(ImageOptions)
    for name in "folder", "run":
        del of_images[name]
    assert get_type_hints(TrainKeywords) == of_run | of_images
