"""Steps of a worker's own: a fresh optimizer for each lease, and the difference after it."""

from itertools import pairwise

import numpy as np
import pytest

from dist_net.optim import Adam
from dist_net.training.worker.local_steps import LeaseSteps, LocalSteps
from dist_net.vector import Vector

SIZE = 5000  # long enough for compiled loops


class Bowl:
    """The gradient of half the squared distance to the minibatch's place."""

    def __init__(self) -> None:
        self._place = 0.0

    def gather(self, epoch: int, start: int, stop: int) -> None:
        self._place = float(start)

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        np.subtract(weights, np.float32(self._place), out=gradient)
        return float(np.square(gradient).sum()), 1

    def unbind(self) -> None:
        """It holds nothing."""


def lease(local: LocalSteps, base: Vector, stop: int = 3, parts: int = 1) -> Vector:
    difference = np.empty_like(base)
    for _ in local.take(base, LeaseSteps(0, 0, stop, 0.1, parts), difference):
        pass
    return difference


def test_each_lease_takes_the_steps_of_a_fresh_optimizer() -> None:
    base = np.linspace(-1, 1, SIZE, dtype=np.float32)
    expected, rule = base.copy(), Adam().start(SIZE)
    for step in range(3):
        rule.update(expected, [expected - np.float32(step)], expected, [0.1], step + 1)
    local = LocalSteps(Bowl(), Adam().start(SIZE), 1)
    kept = base.copy()
    first = lease(local, base)
    np.testing.assert_allclose(first, base - expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(lease(local, base), first)
    np.testing.assert_array_equal(base, kept)


def test_parts_begin_from_the_same_weights_and_their_differences_are_averaged() -> None:
    base = np.linspace(-1, 1, SIZE, dtype=np.float32)
    local = LocalSteps(Bowl(), Adam().start(SIZE), 1)
    parts = []
    for part in LeaseSteps(0, 0, 7, 0.1, parts=3).split(1):
        difference = np.empty_like(base)
        for _ in local.take(base, part, difference):
            pass
        parts.append(difference)
    mean = (parts[0] + parts[1] + parts[2]) * np.float32(1 / 3)
    np.testing.assert_array_equal(lease(local, base, stop=7, parts=3), mean)
    assert local.correct == 7


@pytest.mark.parametrize(
    ("samples", "parts", "edges"),
    [(12, 3, [0, 4, 8, 12]), (10, 2, [0, 4, 10]), (21, 4, [0, 4, 12, 16, 21]), (1, 1, [0, 1])],
)
def test_a_lease_is_split_into_whole_minibatches(
    samples: int, parts: int, edges: list[int]
) -> None:
    split = LeaseSteps(2, 100, 100 + samples, 0.5, parts).split(4)
    ends = [100 + edge for edge in edges]
    assert split == [LeaseSteps(2, *each, 0.5) for each in pairwise(ends)]
