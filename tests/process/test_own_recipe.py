"""A recipe of a user's own, with a file and data beside it, from training to its last answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Start = Callable[..., Any]

RECIPE = """
from pathlib import Path
import numpy as np
from layers import network
from dist_net import Recipe, fit_image
from dist_net.data import Dataset

print("printed by the recipe")

def data():
    print("printed by the dataset")
    files = sorted(Path(__file__).with_name("images").iterdir())
    images = np.stack([fit_image(each, (12, 12, 3), "stretch") for each in files])
    labels = np.array([int(each.name[0]) for each in files], np.uint8)
    return Dataset("mine", images, labels, images, labels, ("left", "top", "right"))

recipe = Recipe(network, data, (12, 12, 3), fitting="stretch", epochs=60, learning_rate=0.01)
"""
LAYERS = """
from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
network = Sequential(Rescale(), Flatten(), Dense(16, relu), Dense(3))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe; its images are of all proportions, and begin with the number of their class."""
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(96):
        height, width = random.integers(20, 90, 2)
        bright = np.zeros((height, width, 3), bool)
        where = [np.s_[:, : width // 4], np.s_[: height // 4], np.s_[:, -(width // 4) :]]
        bright[where[index % 3]] = True
        pixels = (bright * 200 + random.integers(0, 50, bright.shape)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index % 3}-{index}.png")
    (folder / "layers.py").write_text(LAYERS)
    (folder / "mine.py").write_text(RECIPE)
    return folder / "mine.py"


def test_a_run_of_an_own_recipe_is_whole_in_itself(
    start: Start, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start("train", str(recipe), "--run-dir", str(run), "--json").result()
    for path in (recipe, recipe.with_name("layers.py")):
        path.write_text("raise SystemExit('what lies outside was run')")

    assert start("evaluate", str(run), "--json").result()["test_accuracy"] == 1
    images = sorted(map(str, recipe.with_name("images").iterdir()))
    predict = start("predict", str(run), *images, "--json")
    assert predict.ends() == 0, predict.stderr
    assert predict.stderr == "printed by the recipe\n"  # and no dataset was made
    answers = [json.loads(line) for line in predict.stdout.splitlines()]
    found = [each["predictions"][0]["label"] for each in answers]
    assert found == [("left", "top", "right")[int(Path(each).name[0])] for each in images]
    resume = ("train", "--resume", "--run-dir", str(run), "--epochs", "61", "--json")
    assert start(*resume).result()["epochs"] == 61

    (run / "layers.py").write_text("raise SystemExit('it was changed and run')")
    for command in ("evaluate", "predict", "serve"):
        refused = start(command, str(run), *(images[:1] if command == "predict" else ()))
        assert refused.ends() != 0
        assert f"{run}/layers.py" in refused.stderr
