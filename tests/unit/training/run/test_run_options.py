"""A run's options, as its directory keeps them."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dist_net.data import Dataset
from dist_net.errors import RunDirectoryError, SettingError
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency
from naming import naming


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
