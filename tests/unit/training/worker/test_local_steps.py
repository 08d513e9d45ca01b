"""Local steps: from one training state to the next, in any number of leases."""

from itertools import pairwise

import numpy as np
import pytest

from dist_net.ground.vector import Vector
from dist_net.optim import Adam, Momentum, Optimizer, start_rule
from dist_net.training.worker.local_steps import (
    LocalSteps,
    Minibatch,
    MinibatchGradient,
)
from dist_net.wire.lease_steps import LeaseSteps

TRAINED = 5000  # long enough for compiled loops
SHAPES = (("weight", (TRAINED,)), ("mean", (3,)))


class Bowl:
    """The gradient of half the squared distance to the minibatch's place."""

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        _, start, stop = minibatch
        gradient = weights - np.float32(start)
        gradient[TRAINED:] = start
        return MinibatchGradient(float(stop - start), gradient, 1)


def a_rate(progress: float) -> float:
    return 0.1 / (1 + progress)


def local_steps(optimizer: Optimizer | None = None, batch_size: int = 1) -> LocalSteps:
    rule = start_rule(optimizer or Adam(), SHAPES, (0.9,), 100.0, 0.9)
    return LocalSteps(Bowl(), rule, batch_size, a_rate)


def first_state(local: LocalSteps) -> Vector:
    return local.rule.initial(np.linspace(-1, 1, local.rule.size, dtype=np.float32))


def taken(local: LocalSteps, base: Vector, lease: LeaseSteps) -> Vector:
    """Return a copy of the state after the lease."""
    for _ in local.take(base, lease):
        pass
    return local.state.copy()


@pytest.fixture(params=[Adam(), Momentum(0.9)], ids=lambda each: type(each).__name__)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    chosen: Optimizer = request.param
    return chosen


def test_a_lease_takes_the_rules_steps_at_the_learning_rates_of_its_progress(
    optimizer: Optimizer,
) -> None:
    local, bowl = local_steps(optimizer, batch_size=2), Bowl()
    state = base = first_state(local)
    rates = [a_rate(progress) for progress in (100, 108, 116)]
    for rate, start, stop in zip(rates, (10, 12, 14), (12, 14, 17), strict=True):
        _, gradient, _ = bowl(state[: local.rule.size], Minibatch(3, start, stop))
        following = np.empty_like(state)
        local.rule.step(state, gradient, rate, following)
        state = following
    kept = base.copy()
    result = taken(local, base, LeaseSteps(3, 10, 17, progress=100, pace=8, batch_size=2))
    np.testing.assert_array_equal(result, state)
    np.testing.assert_array_equal(base, kept)
    assert (local.loss_sum, local.correct) == (7.0, 3)


@pytest.mark.parametrize("edges", [[0, 20], [0, 7, 20], [0, 1, 2, 3, 20], [*range(21)]])
@pytest.mark.parametrize("is_copied", [False, True], ids=["in place", "by message"])
def test_one_lease_is_several_leases_bit_for_bit(
    optimizer: Optimizer, edges: list[int], is_copied: bool
) -> None:
    whole, several = local_steps(optimizer), local_steps(optimizer)
    expected = taken(whole, first_state(whole), LeaseSteps(0, 0, 20, 0, 1, 1))
    state = first_state(several)
    for start, stop in pairwise(edges):
        lease = LeaseSteps(0, start, stop, start, 1, 1)
        for _ in several.take(state, lease):
            pass
        state = several.state.copy() if is_copied else several.state
    np.testing.assert_array_equal(state, expected)
    assert state[-1] == 20


def test_a_lease_is_a_function_of_the_state_and_its_samples() -> None:
    """Whatever else the process computed: so any worker may compute it again."""
    local = local_steps()
    base = first_state(local)
    lease = LeaseSteps(1, 5, 9, 45, 1, 1, parts=2)
    first = taken(local, base, lease)
    taken(local, first, LeaseSteps(1, 0, 5, 40, 1, 1))
    np.testing.assert_array_equal(taken(local, base, lease), first)
    np.testing.assert_array_equal(taken(local_steps(), base, lease), first)


def test_parts_begin_from_the_same_state_at_the_same_rate_and_are_averaged() -> None:
    local = local_steps()
    base = first_state(local)
    lease = LeaseSteps(0, 0, 7, 50, 3, 1, parts=3)
    parts = lease.split()
    assert {(part.progress, part.pace) for part in parts} == {(50, 3)}
    one, two, three = (taken(local, base, part) for part in parts)
    np.testing.assert_array_equal(
        taken(local, base, lease), (one + two + three) * np.float32(1 / 3)
    )
    assert (local.correct, local.loss_sum) == (7, 7.0)


def test_a_lease_that_is_not_completed_leaves_nothing_behind() -> None:
    local = local_steps()
    base = first_state(local)
    expected = taken(local_steps(), base, LeaseSteps(0, 0, 3, 0, 1, 1))
    unfinished = local.take(base, LeaseSteps(0, 10, 20, 10, 1, 1))
    for _ in range(4):
        next(unfinished)
    np.testing.assert_array_equal(taken(local, base, LeaseSteps(0, 0, 3, 0, 1, 1)), expected)
    assert (local.loss_sum, local.correct) == (3.0, 3)


@pytest.mark.parametrize(
    ("samples", "parts", "edges"),
    [(12, 3, [0, 4, 8, 12]), (10, 2, [0, 4, 10]), (21, 4, [0, 4, 8, 12, 21]), (1, 1, [0, 1])],
)
def test_a_lease_is_split_into_whole_minibatches(
    samples: int, parts: int, edges: list[int]
) -> None:
    split = LeaseSteps(2, 100, 100 + samples, 50, 8, 4, parts).split()
    ends = [100 + edge for edge in edges]
    assert split == [LeaseSteps(2, *each, 50, 8, 4) for each in pairwise(ends)]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_share_of_a_minibatch_has_the_rate_of_its_optimizer(parts: int) -> None:
    local, whole = local_steps(batch_size=4), local_steps(batch_size=1)
    base = first_state(local)
    lease = LeaseSteps(0, 0, 2, 0, 4, 1, parts)
    moved, usual = (taken(each, base, lease)[:TRAINED] - base[:TRAINED] for each in (local, whole))
    np.testing.assert_allclose(moved, 2 * usual, atol=0.01)
