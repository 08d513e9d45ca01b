"""The moving average of the weights, held against its formula."""

import numpy as np
import pytest

from dist_net.errors import SettingError
from dist_net.optim.rule import STRIP_LENGTH, WeightAverage
from naming import naming

SIZE = 2 * STRIP_LENGTH + 3


def test_the_average_follows_the_weights_faster_at_first() -> None:
    weights = np.random.default_rng(0).standard_normal((40, SIZE)).astype(np.float32)
    average, expected = WeightAverage(weights[0], 0.7), weights[0].astype(np.float64)
    for version in range(1, 40):
        average.update(weights[version], version, 1)
        decay = min(0.7, (1 + version) / (10 + version))
        expected = decay * expected + (1 - decay) * weights[version]
    np.testing.assert_allclose(average.weights, expected, rtol=1e-4, atol=1e-6)


def test_updates_taken_together_weigh_as_much_as_in_turn() -> None:
    weights = np.ones(5, np.float32)
    together, in_turn = (WeightAverage(np.zeros(5, np.float32), 0.5) for _ in range(2))
    together.update(weights, 103, 3)
    for version in (101, 102, 103):
        in_turn.update(weights, version, 1)
    np.testing.assert_allclose(together.weights, in_turn.weights)
    np.testing.assert_allclose(together.weights, 0.875)


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(SettingError, match=naming("average_decay=1.0")):
        WeightAverage(np.zeros(5, np.float32), 1.0)
