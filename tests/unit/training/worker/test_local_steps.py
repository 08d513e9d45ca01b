"""Steps of a worker's own: a fresh optimizer for each lease, and the difference after it."""

import numpy as np

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
