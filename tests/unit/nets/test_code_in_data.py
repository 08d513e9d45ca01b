"""Data never runs code: a recipe of images that names a Python file is refused.

A run directory, a parameter server's offer and a gateway's description may all hold such a recipe.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from described import described
from dist_net.cli import main
from dist_net.errors import RecipeError, UntrustedRecipeError
from dist_net.nets.architecture import FolderArchitecture
from dist_net.nets.observer import Observer
from dist_net.nets.offered_recipe import OfferedRecipe
from dist_net.nets.recipes.image_recipe import IMAGES, RECIPE_JSON, Base
from dist_net.nets.recipes.recipe import BUILT_IN, built_in_recipe, own_release
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.named_source import NamedSource
from dist_net.serving.pool.description import ModelDescription
from dist_net.wire.messages import RecipeOffer
from marked_code import MarkedCode


@pytest.fixture
def code(tmp_path: Path) -> MarkedCode:
    return MarkedCode(tmp_path)


@pytest.fixture
def run(tmp_path: Path, code: MarkedCode) -> RunDirectory:
    return code.run(tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "RUN", "image.png"],
        ["evaluate", "RUN"],
        ["export", "RUN", "net.onnx"],
        ["train", "--resume", "--run-dir", "RUN"],
    ],
)
def test_no_command_runs_what_a_run_directory_names(
    words: list[str], run: RunDirectory, code: MarkedCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path) if word == "RUN" else word for word in words]) == 2
    assert (
        '"kind": "recipe", "name": "none"' in capsys.readouterr().err
    )  # of the value, which is cut
    assert not code.was_run


def read_by_server(run: RunDirectory, _: str) -> None:
    NamedSource("m", str(run.path)).open(print).read()


def started_by_server(run: RunDirectory, _: str) -> None:
    load_run_recipe(run)


def joined(run: RunDirectory, evil: str) -> None:
    files = (RECIPE_JSON.encode(), evil.encode())
    OfferedRecipe.from_offer(RecipeOffer("pets", IMAGES, own_release(), "[]", "", files)).keep(run)
    load_run_recipe(run)


def served(_: RunDirectory, evil: str) -> None:
    description = described("pets", architecture=FolderArchitecture(evil))
    ModelDescription.from_json(description.to_json()).architecture.build("pets")


@pytest.mark.parametrize("read", [read_by_server, started_by_server, joined, served])
def test_no_process_runs_what_a_file_or_a_peer_names(
    read: Callable[[RunDirectory, str], None], run: RunDirectory, code: MarkedCode
) -> None:
    with pytest.raises(RecipeError):
        read(run, code.recipe)
    assert not code.was_run


def test_a_server_that_says_images_and_sends_code_is_not_believed(
    tmp_path: Path, code: MarkedCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (b"recipe.py", code.file.read_bytes())
    offer = RecipeOffer("pets", "", own_release(), "[]", "", files)
    monkeypatch.setattr(Observer, "status", lambda *_: {"recipe": IMAGES, "version": 1})
    monkeypatch.setattr(Observer, "recipe", lambda _: offer)
    with pytest.raises(UntrustedRecipeError):
        NamedSource("m", f"ipc://{tmp_path}/none").open(print).read()
    assert not code.was_run


def test_a_base_loads_a_built_in_recipe_by_name_alone(code: MarkedCode) -> None:
    path = str(code.file)
    with pytest.raises(RecipeError, match="digits"):
        Base("recipe", "pets", (8, 8), "pad", path).network  # noqa: B018 - raises
    with pytest.raises(RecipeError):
        built_in_recipe(path)
    assert not code.was_run
    assert built_in_recipe("digits").path.is_relative_to(BUILT_IN)
