"""The modes are named in options and checkpoints."""

import pytest

from dist_net.errors import SettingError
from dist_net.training.server.consistency import Consistency
from naming import naming


@pytest.mark.parametrize("mode", Consistency)
def test_a_mode_is_read_and_written_by_its_name(mode: Consistency) -> None:
    assert Consistency.parse(str(mode)) is mode


@pytest.mark.parametrize("text", ["", "auto", "ssp:4", "bsp:2", "local:64", "ROUNDS", "sync"])
def test_an_unknown_mode_is_refused_with_all_modes(text: str) -> None:
    with pytest.raises(SettingError, match=naming(repr(text), "rounds", "async", "bsp")):
        Consistency.parse(text)
