"""Data never runs code: a recipe of pictures that names a Python file is refused.

A run directory, a parameter server's offer and a gateway's description may all hold such a recipe.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dist_net.cli import main
from dist_net.errors import RecipeError, UnknownRecipeError, UntrustedRecipeError
from dist_net.models.observer import Observer
from dist_net.models.offered_recipe import OfferedRecipe
from dist_net.models.run_directory import RunDirectory
from dist_net.models.run_options import RunOptions
from dist_net.models.sources import source_called
from dist_net.models.trained_model import recipe_of_run
from dist_net.parameter_server.checkpoint import Checkpoint, write_checkpoint
from dist_net.recipes.picture_recipe import (
    PICTURES,
    RECIPE_JSON,
    Base,
    PictureRecipe,
    small_base,
)
from dist_net.recipes.recipe import built_in_recipe, own_release
from dist_net.recipes.recipe_files import sha256
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker.served_network import model_of
from dist_net.wire.messages import RecipeOffer

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from dist_net.recipes.built_in.digits import recipe
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that shows that code was run."""
    return tmp_path / "was run"


@pytest.fixture
def evil(tmp_path: Path, marker: Path) -> str:
    """A recipe of pictures, whose base is a Python file that writes the marker."""
    path = tmp_path / "evil.py"
    path.write_text(CODE.format(marker=str(marker)))
    recipe = json.loads(PictureRecipe("pets", small_base(), ("cat", "dog")).to_json())
    recipe["base"] |= {"kind": "recipe", "text": str(path), "input_shape": [8, 8]}
    return json.dumps(recipe)


@pytest.fixture
def run(tmp_path: Path, evil: str) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    record = {RECIPE_JSON: sha256(evil.encode())}
    directory.make()
    directory.begin(RunOptions(PICTURES, recipe_files=record), {RECIPE_JSON: evil.encode()})
    good = PictureRecipe("pets", small_base(), ("cat", "dog")).model
    weights = good.layout.initial(np.random.default_rng(0))
    checkpoint = Checkpoint(
        PICTURES, "", good.layout.shapes, 1, {}, {}, {}, weights, {}, {"files": record}
    )
    write_checkpoint(directory.checkpoint, checkpoint)
    return directory


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "RUN", "picture.png"],
        ["evaluate", "RUN"],
        ["export", "RUN", "net.onnx"],
        ["train", "--resume", "--run-dir", "RUN"],
    ],
)
def test_no_command_runs_what_a_run_directory_names(
    words: list[str], run: RunDirectory, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path) if word == "RUN" else word for word in words]) == 2
    assert "no built-in recipe" in capsys.readouterr().err
    assert not marker.exists()


def read_by_server(run: RunDirectory, _: str) -> None:
    source_called(str(run.path), None, None, print).read()


def started_by_server(run: RunDirectory, _: str) -> None:
    recipe_of_run(run)


def joined(run: RunDirectory, evil: str) -> None:
    files = (RECIPE_JSON.encode(), evil.encode())
    OfferedRecipe.of(RecipeOffer("pets", PICTURES, own_release(), "[]", files)).keep(run)
    recipe_of_run(run)


def served(_: RunDirectory, evil: str) -> None:
    description = ModelDescription(
        *("pets", 1, "UINT8", (8, 8), 2, (), True, True, "", "", "", 0, "0" * 64),
        picture_recipe=evil,
    )
    model_of(ModelDescription.from_json(description.to_json()))


@pytest.mark.parametrize("read", [read_by_server, started_by_server, joined, served])
def test_no_process_runs_what_a_file_or_a_peer_names(
    read: Callable[[RunDirectory, str], None], run: RunDirectory, evil: str, marker: Path
) -> None:
    with pytest.raises(RecipeError):
        read(run, evil)
    assert not marker.exists()


def test_a_server_that_says_pictures_and_sends_code_is_not_believed(
    tmp_path: Path, evil: str, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = Path(json.loads(evil)["base"]["text"]).read_bytes()
    offer = RecipeOffer("pets", "", own_release(), "[]", (b"recipe.py", code))
    monkeypatch.setattr(Observer, "status", lambda *_: {"recipe": PICTURES, "version": 1})
    monkeypatch.setattr(Observer, "recipe", lambda _: offer)
    with pytest.raises(UntrustedRecipeError):
        source_called(f"ipc://{tmp_path}/none", None, None, print).read()
    assert not marker.exists()


def test_a_base_loads_a_built_in_recipe_by_name_alone(marker: Path, evil: str) -> None:
    path = json.loads(evil)["base"]["text"]
    with pytest.raises(UnknownRecipeError, match="digits"):
        Base("recipe", "pets", (8, 8), "pad", path).network  # noqa: B018 - raises
    with pytest.raises(UnknownRecipeError):
        built_in_recipe(path)
    assert not marker.exists()
    assert built_in_recipe("digits").is_built_in
