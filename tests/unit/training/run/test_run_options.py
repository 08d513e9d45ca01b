"""A run's options, as its directory keeps them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.data import Dataset
from dist_net.errors import RunDirectoryError, SettingError
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency
from naming import naming

LINE = Path(__file__).parents[3] / "recipes" / "line.py"


def test_options_are_read_as_they_were_written() -> None:
    options = RunOptions("digits", epochs=3, optimizer="sgd", local_steps=5, seed=7)
    assert RunOptions.from_json(options.to_json()) == options


def test_a_server_knows_the_dataset_from_the_options_without_reading_it() -> None:
    loaded = load_recipe("digits")
    dataset = loaded.recipe.load_dataset()
    read = RunOptions.from_json(RunOptions("digits", seed=7).on(loaded, dataset).to_json())

    def refuse(*_: object) -> Dataset:
        raise AssertionError("the dataset was read")

    blind = replace(loaded, recipe=replace(loaded.recipe, dataset=refuse))
    settings = read.settings(blind)
    assert settings == RunOptions("digits", seed=7).settings(loaded)  # of an earlier release's run
    assert settings.samples == len(dataset.train_targets)
    assert settings.recipe_digest == loaded.digest(dataset)
    assert settings.recipe_record["class_names"] == dataset.class_names


@pytest.mark.parametrize(
    "damage", [{"samples": "5"}, {"digest": None}, {"class_names": [1]}, {"more": 1}, {}]
)
def test_damaged_facts_about_a_dataset_are_refused(damage: dict[str, Any]) -> None:
    facts = {"samples": 5, "has_classes": True, "class_names": ["a"], "digest": "d"}
    assert RunOptions.from_json(json.dumps({"recipe": "digits", "data": facts})).data is not None
    with pytest.raises(RunDirectoryError, match="not a run's options"):
        RunOptions.from_json(
            json.dumps({"recipe": "digits", "data": facts | damage if damage else [5]})
        )


def test_an_option_that_is_missing_has_its_default() -> None:
    values = json.loads(RunOptions("digits", epochs=3).to_json())
    del values["local_steps"]
    assert RunOptions.from_json(json.dumps(values)) == RunOptions("digits", epochs=3)


@pytest.mark.parametrize("text", ["{}", "[]", "5", '{"recipe": 5', '{"recipe": "digits", "seed"'])
def test_what_is_no_runs_options_is_refused(text: str) -> None:
    with pytest.raises(RunDirectoryError, match=naming("options", text)):
        RunOptions.from_json(text)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "local_steps", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_count_or_rate_that_is_not_above_zero_is_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=naming(f"{name}={value}")):
        RunOptions("digits", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_a_seed_that_no_message_can_hold_is_refused(seed: int) -> None:
    with pytest.raises(SettingError, match=naming(f"seed={seed}", f"0 to {2**63 - 1}")):
        RunOptions("digits", seed=seed)
    assert RunOptions("digits", seed=2**63 - 1).seed == 2**63 - 1


def test_consistency_and_local_steps_reach_the_settings() -> None:
    loaded = load_recipe("digits")
    data = RunOptions("digits").on(loaded, loaded.recipe.load_dataset()).data
    options = RunOptions("digits", consistency="async", local_steps=4, data=data)
    settings = options.settings(loaded)
    assert (settings.consistency, settings.local_steps) == (Consistency.ASYNC, 4)
    assert RunOptions("digits", data=data).settings(loaded).consistency is Consistency.ROUNDS
    with pytest.raises(SettingError, match=naming("consistency='ssp:4'", "rounds")):
        RunOptions("digits", consistency="ssp:4")
    with pytest.raises(SettingError, match=naming("local_steps=4", "bsp")):
        RunOptions("digits", consistency="bsp", local_steps=4, data=data).settings(loaded)


def test_numbers_of_numpy_are_written_and_reach_the_settings_as_pythons() -> None:
    of_numpy = RunOptions(
        "digits",
        epochs=np.int64(3),  # type: ignore[arg-type]
        batch_size=np.int32(16),  # type: ignore[arg-type]
        learning_rate=np.float32(0.5),  # type: ignore[arg-type]
        clip_norm=np.float32(2),  # type: ignore[arg-type]
        local_steps=np.int64(4),  # type: ignore[arg-type]
        seed=np.uint64(7),  # type: ignore[arg-type]
        keeps_best=np.bool_(True),  # type: ignore[arg-type]
    )
    plain = RunOptions("digits", 3, 16, None, 0.5, None, 2.0, None, "rounds", 4, 7, keeps_best=True)
    assert of_numpy.to_json() == plain.to_json()
    loaded = load_recipe("digits")
    assert of_numpy.settings(loaded).step_settings == plain.settings(loaded).step_settings


def test_zero_switches_off_what_the_recipe_or_an_earlier_start_has() -> None:
    loaded = load_recipe("digits")
    recipe = replace(loaded.recipe, clip_norm=1.0, average_decay=0.9)
    loaded = replace(loaded, recipe=recipe)
    for options in (RunOptions("digits"), RunOptions("digits", clip_norm=2.0, average_decay=0.5)):
        off = options.replaced_by(clip_norm=0.0, average_decay=0.0).settings(loaded)
        assert (
            off.start_rule().sizes
            == RunOptions("digits", average_decay=0.0).settings(loaded).start_rule().sizes
        )
        assert (off.clip_norm, off.average_decay) == (0, 0)
    own = RunOptions("digits").settings(loaded)
    assert (own.clip_norm, own.average_decay) == (1.0, 0.9)
    assert own.start_rule().state_size > off.start_rule().state_size


def test_the_number_of_local_steps_may_become_automatic_again() -> None:
    loaded = load_recipe("digits")
    begun = RunOptions.from_json(RunOptions("digits", local_steps=8).to_json())
    assert begun.replaced_by(local_steps=None).settings(loaded).local_steps == 8
    assert begun.replaced_by(local_steps="auto").settings(loaded).local_steps is None
    with pytest.raises(SettingError, match=naming("local_steps='many'")):
        RunOptions("digits", local_steps="many")  # type: ignore[arg-type]


def test_patience_keeps_the_best_weights_until_it_is_none() -> None:
    patient = RunOptions.from_json(RunOptions("digits", patience=3).to_json())
    assert patient.keeps_best
    assert not RunOptions("digits", patience=0).keeps_best
    with pytest.raises(SettingError, match=naming("patience=3", "best", "patience 0")):
        patient.replaced_by(keeps_best=False)
    assert patient.replaced_by(keeps_best=False, patience=0).keeps_best is False


def test_facts_that_differ_by_rounding_stay_those_of_the_runs_first_machine() -> None:
    loaded = load_recipe(str(LINE))
    dataset = loaded.recipe.load_dataset()
    first = RunOptions("line").on(loaded, dataset)
    assert first.data is not None
    *facts, gradient = first.data.digest.split(",")
    rounded = ",".join((*facts, f"{float(gradient) + 0.001:.3f}"))
    elsewhere = replace(first, data=replace(first.data, digest=rounded))
    assert elsewhere.on(loaded, dataset).data == elsewhere.data
    other = replace(first, data=replace(first.data, digest="release 0; recipe 1; data 2"))
    assert other.on(loaded, dataset).data == first.data
