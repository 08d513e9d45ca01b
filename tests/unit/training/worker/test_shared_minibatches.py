"""Minibatches in parts: any number of parts takes the steps of one, batch norm included."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import BatchNorm, Conv2D, Dense, GlobalAveragePool, Layer, Sequential
from dist_net.training.run.fit_workers import SharedSteps, shared_memory
from dist_net.training.worker.local_steps import LocalSteps, local_steps
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings


def dense() -> Layer:
    second = BatchNorm(epsilon_on="deviation")
    return Sequential(BatchNorm(), Dense(8), BatchNorm(activation="relu"), Dense(5), second)


def convolutional() -> Layer:
    layers = Conv2D(8, 3, 2), BatchNorm(activation="relu"), Conv2D(5, 3), BatchNorm()
    return Sequential(*layers, GlobalAveragePool())


def local_and_base(
    network: Layer, inputs: np.ndarray, batch_size: int
) -> tuple[LocalSteps, np.ndarray]:
    targets = np.random.default_rng(7).integers(0, 5, len(inputs))
    dataset = Dataset("drawn", inputs, targets, inputs, targets, ("a", "b", "c", "d", "e"))
    shape = inputs.shape[1:]
    facts: Any = {"optimizer": "momentum", "learning_rate": 0.02, "input_dtype": np.float32}
    recipe = Recipe(network, lambda: dataset, shape, batch_size=batch_size, **facts)
    chosen = StepSettings.of(recipe, seed=0, optimizer=str(recipe.optimizer))
    local = local_steps(recipe, dataset, chosen)
    return local, local.rule.initial(recipe.initial_weights(0))


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([dense, convolutional]),
    st.integers(2, 20),
    st.integers(0, 19),
    st.sampled_from([2, 3, 5]),
    st.sampled_from([0.0, 100.0]),
)
def test_parts_take_the_steps_of_the_whole(
    network: Any, batch_size: int, rest: int, count: int, offset: float
) -> None:
    """Also uneven ones, a minibatch that is too small for them, and means that are far from 0."""
    # Batch normalization makes ±1 of two rows: their gradients are differences of rounding errors.
    assume(rest % batch_size != 2)
    shape = (6, 6, 3) if network is convolutional else (6,)
    samples = 3 * batch_size + rest % batch_size
    spread = np.random.default_rng(rest).standard_normal((samples, *shape), np.float32)
    local, base = local_and_base(network(), spread + np.float32(offset), batch_size)
    shared = SharedSteps(local, shared_memory(local, count))
    lease = LeaseSteps(0, 0, samples, 0, pace=batch_size, batch_size=batch_size)
    for steps in (local, shared):
        assert len([*steps.take(base, lease)]) >= 3
    assert shared.loss_sum == pytest.approx(local.loss_sum, rel=1e-5)
    assert shared.correct == local.correct
    largest = np.abs(local.state - base).max()
    np.testing.assert_allclose(shared.state, local.state, rtol=1e-5, atol=1e-5 * largest)
