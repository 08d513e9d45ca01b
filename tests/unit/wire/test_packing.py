"""Training states in fewer bytes: weights and moments are rounded, all else is exact."""

from typing import NamedTuple

import numpy as np
import pytest

from dist_net.ground.vector import Vector
from dist_net.wire.packing import BLOCK, StatePacking

TRAINED = [1, 2, 3, 5, 255, 256, 257, 845]
BUFFERS = (20_000.3, 1e-3, -1e-9)
"""A moving mean beside a variance: their rounding once cost 26 points of accuracy."""


class State(NamedTuple):
    """A training state of ``trained`` weights, by its parts."""

    weights: Vector
    buffers: Vector
    moments: Vector
    rest: Vector  # an average of the weights, and the number of steps

    @property
    def vector(self) -> Vector:
        return np.concatenate(self)


def a_state(trained: int, moments: int = 2, magnitude: float = 1.0, seed: int = 0) -> State:
    random = np.random.default_rng(seed)
    weights = random.normal(scale=magnitude, size=trained).astype(np.float32)
    spread = 10.0 ** random.uniform(-24, 20, moments * trained)
    average = random.normal(size=trained).astype(np.float32)
    return State(
        weights,
        np.array(BUFFERS, np.float32),
        spread.astype(np.float32),
        np.append(average, np.float32(1_234_567)),
    )


def packing_of(state: State) -> StatePacking:
    trained, model = state.weights.size, state.weights.size + state.buffers.size
    return StatePacking(trained, model, state.moments.size // trained, state.vector.size)


def parts_of(vector: Vector, like: State) -> State:
    return State(*np.split(vector, np.cumsum([part.size for part in like])[:-1]))


def assert_rest_is_kept(received: State, sent: State) -> None:
    """Buffers, average and step count are exact; the optimizer's vectors are bfloat16."""
    np.testing.assert_array_equal(received.buffers, sent.buffers)
    np.testing.assert_array_equal(received.rest, sent.rest)
    np.testing.assert_allclose(received.moments, sent.moments, rtol=2**-8, atol=0)
    assert (received.moments > 0).all()


@pytest.mark.parametrize("moments", [0, 1, 2])
@pytest.mark.parametrize("trained", TRAINED)
def test_a_base_has_float16_weights_and_all_else_nearly_as_it_is(
    trained: int, moments: int
) -> None:
    state = a_state(trained, moments)
    packing, out = packing_of(state), np.empty_like(state.vector)
    packed = packing.pack_base(state.vector)
    assert packed.size <= state.vector.size
    packing.unpack_base(packed, out=out)
    received = parts_of(out, state)
    assert_rest_is_kept(received, state)
    np.testing.assert_allclose(received.weights, state.weights, rtol=2**-11, atol=1e-7)


def test_a_weight_beyond_the_range_of_float16_keeps_the_base_as_it_is() -> None:
    state = a_state(300)
    state.weights[7] = 70_000.0
    packing, out = packing_of(state), np.empty_like(state.vector)
    packing.unpack_base(packing.pack_base(state.vector), out=out)
    np.testing.assert_array_equal(out, state.vector)


@pytest.mark.parametrize("moments", [0, 1, 2])
@pytest.mark.parametrize("magnitude", [1e-12, 1e-3, 1e30])
@pytest.mark.parametrize("trained", TRAINED)
def test_a_change_is_off_by_half_a_scale_of_its_block_at_most(
    trained: int, magnitude: float, moments: int
) -> None:
    base = a_state(trained, moments)
    base.weights[:] = 0
    state = a_state(trained, moments, magnitude, seed=1)
    state.weights[: trained // 2] *= np.float32(1e-3)
    packing, out = packing_of(state), np.empty_like(state.vector)
    packed = packing.pack_result(base.vector, state.vector)
    assert (packed.dtype, packed.size) == (np.float32, packing.result_size)
    packing.unpack_result(packed, base.vector, out=out)
    received = parts_of(out, state)
    assert_rest_is_kept(received, state)
    for start in range(0, trained, BLOCK):
        block = slice(start, start + BLOCK)
        most = np.abs(state.weights[block]).max() / 127 / 2
        assert np.abs(received.weights[block] - state.weights[block]).max() <= 1.01 * most


def test_the_change_counts_on_any_base_which_may_be_the_output() -> None:
    """Others have changed the server's state since the worker's lease began."""
    base, other = a_state(300), a_state(300, seed=2)
    state = State(base.weights + np.float32(0.25), *base[1:])
    packing, out = packing_of(state), other.vector
    packing.unpack_result(packing.pack_result(base.vector, state.vector), out, out=out)
    received = parts_of(out, state)
    np.testing.assert_allclose(received.weights, other.weights + 0.25, atol=1e-4)
    assert_rest_is_kept(received, state)


def test_weights_that_did_not_change_stay_exact() -> None:
    state = a_state(300)
    packing, out = packing_of(state), np.empty_like(state.vector)
    packing.unpack_result(packing.pack_result(state.vector, state.vector), state.vector, out=out)
    np.testing.assert_array_equal(parts_of(out, state).weights, state.weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [3, 512, 516, -1])
def test_an_element_that_is_not_finite_arrives_as_one(bad: float, place: int) -> None:
    base, vector = a_state(512), a_state(512).vector
    vector[place] = bad
    packing, out = packing_of(base), np.empty_like(vector)
    packing.unpack_result(packing.pack_result(base.vector, vector), base.vector, out=out)
    assert not np.isfinite(out).all()


def test_a_packed_base_takes_two_bytes_for_each_weight_and_moment() -> None:
    state = State(np.ones(10_000, "f4"), np.ones(2, "f4"), np.ones(20_000, "f4"), np.ones(1, "f4"))
    packing = packing_of(state)
    assert packing.pack_base(state.vector).nbytes == 2 * 30_000 + 4 * 3
    assert 4 * packing.result_size == 10_000 + 4 * 40 + 2 * 20_000 + 4 * 3
