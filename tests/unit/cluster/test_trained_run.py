"""What ``dist_net.train`` refuses before it starts anything."""

from pathlib import Path
from typing import Any

import pytest

import dist_net
from dist_net.errors import SettingError, UnknownOptimizerError, UnknownRecipeError


@pytest.mark.parametrize(
    ("recipe", "options", "error", "words"),
    [
        (None, {}, UnknownRecipeError, "a NoneType cannot be sent .*: LocalCluster trains a"),
        ("digit", {}, UnknownRecipeError, "no recipe 'digit'; did you mean digits"),
        ("digits", {"optimizer": "adamz"}, UnknownOptimizerError, "no optimizer 'adamz'"),
        ("digits", {"clip_norm": -1.0}, SettingError, "clip_norm=-1.0: expected a finite number"),
        ("digits", {"consistency": "bsp", "workers": 0}, SettingError, "'bsp': how many workers"),
        # With workers it is bsp:N, so that something else is refused.
        ("digits", {"consistency": "bsp", "clip_norm": -1.0}, SettingError, "clip_norm=-1.0"),
        ("digits", {"weight_decay": 0.1}, SettingError, "expected the optimizer adamw"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_no_directory_is_made(
    recipe: Any, options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        dist_net.train(recipe, run_dir=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()
