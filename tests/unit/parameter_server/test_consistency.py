"""What a consistency is called, and the mean of a round."""

import numpy as np
import pytest

from dist_net.errors import SettingError
from dist_net.parameter_server.consistency import ASYNC, Consistency, Round


def test_each_is_read_and_written_by_its_name() -> None:
    assert Consistency.of("async") == ASYNC
    assert Consistency.of("ssp:0") == Consistency(most_ahead=0)
    assert Consistency.of("bsp", workers=3) == Consistency.of("bsp:3")
    for text in ("async", "ssp:4", "bsp:16"):
        assert str(Consistency.of(text)) == text


@pytest.mark.parametrize(
    "text", ["", "bsp", "ssp", "ssp:", "ssp:-1", "ssp:x", "bsp:0", "bsp:4097", "bsp:²", "sync"]
)
def test_what_names_none_is_refused_with_what_does(text: str) -> None:
    with pytest.raises(SettingError, match=r"expected async, ssp:N .* bsp:N"):
        Consistency.of(text)


def test_the_mean_of_a_round_is_over_samples_and_the_same_in_any_order() -> None:
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(3, 7)).astype(np.float32)
    parts = [(0, 4, 8), (0, 8, 9), (1, 0, 4)]
    means = []
    collected = Round()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        for index in order:
            collected.add(*parts[index], gradients[index])
        assert (len(collected), collected.samples) == (3, 9)
        means.append(collected.mean().copy())
        collected.clear()
        assert len(collected) == 0
    np.testing.assert_allclose(means[0], np.average(gradients, 0, [4, 1, 4]), rtol=1e-5)
    assert len({mean.tobytes() for mean in means}) == 1
