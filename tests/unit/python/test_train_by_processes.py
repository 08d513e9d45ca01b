"""What ``dist_net.train`` refuses before it starts anything, and what ``load`` returns later."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net.errors import (
    ModelSourceError,
    RecipeError,
    SettingError,
    UntrustedRecipeError,
)
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.nets.run_directory import RunDirectory
from dist_net.nn.inference import softmax
from image_runs import COLOURS, SIDE, write_calibration, write_run
from naming import naming


@pytest.mark.parametrize(
    ("recipe", "options", "error", "words"),
    [
        (None, {}, RecipeError, "NoneType.*LocalCluster"),
        ("digit", {}, RecipeError, "'digit'.*digits"),
        ("digits", {"optimizer": "adamz"}, SettingError, "'adamz'"),
        ("digits", {"clip_norm": -1.0}, SettingError, "clip_norm=-1.0"),
        ("digits", {"workers": 0}, SettingError, "workers=0"),
        ("digits", {"consistency": "ssp:4"}, SettingError, "'ssp:4'.*rounds, async, bsp"),
        ("digits", {"local_steps": 0}, SettingError, "local_steps=0"),
        ("digits", {"consistency": "bsp", "local_steps": 4}, SettingError, "local_steps=4.*bsp"),
        ("digits", {"weight_decay": 0.1}, SettingError, "weight_decay=0.1.*adamw"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_no_directory_is_made(
    recipe: Any, options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        dist_net.train(recipe, run_dir=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"patience": 2}, {"keeps_best": True}])
def test_options_that_a_folder_of_images_has_no_use_for_are_refused_in_python_too(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (photos := tmp_path / "photos").mkdir()
    with pytest.raises(SettingError, match=naming(*options)):
        dist_net.train(photos, run_dir=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_loaded_run_predicts_with_its_calibration_and_is_evaluated(
    temperature: float, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "my run", times_likelier=4.0)
    write_calibration(path, 0.5, temperature)
    run = dist_net.load(str(path))
    assert run.class_names == COLOURS
    red = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 255
    odds = 4 ** (1 / temperature)
    np.testing.assert_allclose(
        softmax(run.predict(red)), [[odds / (odds + 2), *[1 / (odds + 2)] * 2]], rtol=1e-3
    )
    held_out = run.evaluate()
    assert (held_out.samples, held_out.accuracy) == (12, 1.0)
    given = run.evaluate(red, np.array([1]))
    assert (given.samples, given.accuracy) == (1, 0.0)
    assert (dist_net.load(path).predict(red) == run.predict(red)).all()


@pytest.mark.parametrize(
    ("name", "call"), [("net.pt", "torch.onnx.export"), ("net.keras", "model.export")]
)
def test_for_a_model_of_another_library_its_way_to_onnx_is_named(
    name: str, call: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 an archive")
    with pytest.raises(ModelSourceError, match=re.escape(call)):
        dist_net.load(tmp_path / name)
    with pytest.raises(RecipeError, match=re.escape(call)):
        dist_net.train(tmp_path / name, quiet=True)


def test_a_cluster_in_threads_takes_a_recipe_not_its_name() -> None:
    with pytest.raises(RecipeError, match=r"'digits'.*load_recipe"):
        dist_net.LocalCluster("digits")  # type: ignore[arg-type]


def test_no_run_and_a_run_whose_recipe_is_not_trusted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=naming("no run")):
        dist_net.load(tmp_path / "no run")
    directory = RunDirectory(write_run(tmp_path / "run"))
    checkpoint = read_checkpoint(directory.best)
    code = tmp_path / "recipe.py"
    code.write_text("from dist_net.nets.recipes.built_in.digits import recipe")
    directory.recipe.write_bytes(code.read_bytes())
    write_checkpoint(directory.best, replace(checkpoint, recipe=str(code), recipe_record={}))
    with pytest.raises(UntrustedRecipeError) as refused:
        dist_net.load(directory.path)
    assert "trust_recipe=True" in refused.value.__notes__[0]
