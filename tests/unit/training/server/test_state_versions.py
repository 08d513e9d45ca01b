"""Versions of the state never change, and take in nothing that is not finite."""

import numpy as np
import pytest

from dist_net.errors import CheckpointError
from dist_net.ground.vector import AVERAGE, Vector
from dist_net.optim import SGD, Adam, Momentum, UpdateRule, start_rule
from dist_net.optim.rule import STEPS
from dist_net.training.server.consistency import WHOLE, OuterStep
from dist_net.training.server.state import OUTER_MOMENTUM, StateVersions

LAYOUT = (("weight", (3,)), ("variance", (2,)))
NESTEROV = OuterStep(0.5, 0.75, 1.0)
SHARE = OuterStep(0.25, 0.0, 0.25)


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def a_store(rule: UpdateRule | None = None) -> StateVersions:
    """Parameters 1, 2, 3 and buffers 4, 5; with momentum, a state of 9 elements."""
    return StateVersions(rule or start_rule(Momentum(0.5), LAYOUT, (0.9,)), vector(1, 2, 3, 4, 5))


def a_result(value: float = 8.0, size: int = 9) -> Vector:
    return np.full(size, value, np.float32)


def test_a_whole_result_becomes_the_state_bit_for_bit() -> None:
    store = a_store()
    result = np.random.default_rng(0).random(9).astype(np.float32)
    expected = result.copy()
    assert store.apply(result, WHOLE)
    np.testing.assert_array_equal(store.state, expected)
    assert store.version == 1


def test_parameters_take_nesterovs_step_and_all_else_the_results_values() -> None:
    store = a_store()
    weights, momentum = np.array([1.0, 2.0, 3.0]), np.zeros(3)
    for value in (8.0, 1.0, 0.5):
        assert store.apply(a_result(value), NESTEROV)
        change = weights - value
        momentum = 0.75 * momentum + change
        weights = weights - 0.5 * (change + 0.75 * momentum)
        np.testing.assert_allclose(store.state[:3], weights, rtol=1e-6)
        np.testing.assert_allclose(store.outer_momentum, momentum, rtol=1e-6)
        np.testing.assert_array_equal(store.state[3:], value)


def test_a_share_moves_all_of_the_state() -> None:
    store = a_store()
    before = store.state.copy()
    assert store.apply(a_result(8.0), SHARE)
    np.testing.assert_allclose(store.state, 0.75 * before + 0.25 * 8.0, rtol=1e-6)
    assert not store.outer_momentum.any()


def test_a_step_without_momentum_ends_the_momentum() -> None:
    store = a_store()
    store.apply(a_result(), NESTEROV)
    assert store.outer_momentum.any()
    store.apply(a_result(), WHOLE)
    assert not store.outer_momentum.any()


@pytest.mark.parametrize("outer", [WHOLE, NESTEROV, SHARE])
def test_a_version_never_changes(outer: OuterStep) -> None:
    store = a_store()
    versions = []
    for value in (8.0, 1.0, 0.5):
        versions.append((store.state, store.state.copy(), store.vectors, store.vectors.copy()))
        store.apply(a_result(value), outer)
    for state, copy, parts, copies in versions:
        np.testing.assert_array_equal(state, copy)
        for name, part in parts.items():
            np.testing.assert_array_equal(part, copies[name])
    for array in (store.state, store.weights, *store.vectors.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@pytest.mark.parametrize("outer", [WHOLE, NESTEROV, SHARE])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 5, 8])
def test_a_result_that_is_not_finite_changes_nothing(
    outer: OuterStep, place: int, bad: float
) -> None:
    store = a_store()
    store.apply(a_result(), NESTEROV)
    before = store.state, store.outer_momentum, store.version
    result = a_result()
    result[place] = bad
    assert not store.apply(result, outer)
    assert (store.state, store.outer_momentum, store.version) == before  # the same arrays
    assert store.apply(a_result(), outer)


@pytest.mark.parametrize("outer", [WHOLE, NESTEROV, SHARE])
def test_a_weight_whose_square_overflows_counts_as_infinite(outer: OuterStep) -> None:
    store, result = a_store(), a_result()
    result[0] = 1e30
    assert not store.apply(result, outer)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 1 / 3])
def test_a_variance_stays_between_the_values_of_the_workers(share: float) -> None:
    store = a_store()
    random = np.random.default_rng(0)
    for value in random.uniform(0, 1e-6, 100).astype(np.float32):
        store.apply(a_result(value), OuterStep(share, 0.0, share))
        assert (store.state[3:5] >= 0).all()
        assert (store.state[3:5] <= 5).all()


def trained(store: StateVersions, values: list[float]) -> StateVersions:
    for value in values:
        assert store.apply(a_result(value, store.state.size), NESTEROV)
    return store


def test_a_restored_store_continues_bit_for_bit() -> None:
    def rule() -> UpdateRule:
        return start_rule(Adam(), LAYOUT, (0.9,), average_decay=0.5)

    whole, first, second = (a_store(rule()) for _ in range(3))
    trained(whole, [8.0, 1.0, 0.5])
    trained(first, [8.0, 1.0])
    second.restore(first.version, first.weights, first.vectors)
    trained(second, [0.5])
    assert second.version == whole.version == 3
    np.testing.assert_array_equal(second.state, whole.state)
    np.testing.assert_array_equal(second.outer_momentum, whole.outer_momentum)
    np.testing.assert_array_equal(second.evaluated_weights, whole.evaluated_weights)


def test_the_average_is_evaluated_and_buffers_as_they_are() -> None:
    store = a_store(start_rule(SGD(), LAYOUT, (0.9,), average_decay=0.5))
    state = store.rule.initial(vector(1, 2, 3, 4, 5))
    store.rule.parts(state)[AVERAGE][:] = 7
    assert store.apply(state, WHOLE)
    np.testing.assert_array_equal(store.evaluated_weights, [7, 7, 7, 4, 5])
    np.testing.assert_array_equal(a_store().evaluated_weights, [1, 2, 3, 4, 5])


def test_an_average_is_begun_or_left_out_when_a_run_is_resumed() -> None:
    parts = {OUTER_MOMENTUM: np.zeros(3, np.float32), STEPS: vector(9)}
    begun = StateVersions(UpdateRule(SGD(), 3, average_decay=0.5), np.zeros(3, np.float32))
    begun.restore(9, vector(7, 7, 7), parts)
    np.testing.assert_array_equal(begun.evaluated_weights, [7, 7, 7])
    without = StateVersions(UpdateRule(SGD(), 3), np.zeros(3, np.float32))
    without.restore(9, vector(7, 7, 7), parts | {AVERAGE: vector(1, 1, 1)})
    np.testing.assert_array_equal(without.evaluated_weights, [7, 7, 7])


@pytest.mark.parametrize(
    "wrong", [{}, {"velocity": np.zeros(4, np.float32)}, {"mean": np.zeros(3, np.float32)}]
)
def test_vectors_of_another_optimizer_are_refused(wrong: dict[str, Vector]) -> None:
    store = a_store()
    parts = {name: part for name, part in store.vectors.items() if name != "velocity"} | wrong
    with pytest.raises(CheckpointError, match="velocity"):
        store.restore(1, store.weights, parts)
    assert store.version == 0
