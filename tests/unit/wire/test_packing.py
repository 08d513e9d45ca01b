"""Vectors in fewer bytes: what is lost, and what must not be."""

import numpy as np
import pytest

from dist_net.wire.packing import (
    BLOCKS,
    pack_difference,
    pack_weights,
    packed_size,
    unpack_difference,
    unpack_weights,
)

SIZES = [1, 2, 3, 5, 64, 65, 256, 257, 845]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1e-12, 1e-3, 1e30])
@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7)])
def test_each_element_is_off_by_half_a_scale_of_its_block_at_most(
    size: int, magnitude: float, bits: int, levels: int
) -> None:
    vector = np.random.default_rng(size).normal(scale=magnitude, size=size).astype(np.float32)
    vector[: size // 2] *= np.float32(1e-3)
    packed = pack_difference(vector, bits=bits)
    assert (packed.dtype, packed.size) == (np.float32, packed_size(size, bits=bits))
    restored = np.empty_like(vector)
    unpack_difference(packed, out=restored, bits=bits)
    for start in range(0, size, BLOCKS[bits]):
        block = slice(start, start + BLOCKS[bits])
        most = np.abs(vector[block]).max() / levels / 2
        assert np.abs(restored[block] - vector[block]).max() <= 1.01 * most


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits: int) -> None:
    out = np.ones(300, np.float32)
    unpack_difference(pack_difference(np.zeros(300, np.float32), bits=bits), out=out, bits=bits)
    assert not out.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_element_that_is_not_finite_is_seen_after_the_way(bad: float, bits: int) -> None:
    vector = np.ones(512, np.float32)
    vector[3] = bad
    restored = np.empty_like(vector)
    unpack_difference(pack_difference(vector, bits=bits), out=restored, bits=bits)
    assert not np.isfinite(restored).all()


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_rounded_to_float16(size: int) -> None:
    weights = np.random.default_rng(size).normal(size=size).astype(np.float32)
    packed, restored = pack_weights(weights), np.empty_like(weights)
    assert packed.size == (size + 1) // 2
    unpack_weights(packed, out=restored)
    expected = weights if size == 1 else weights.astype(np.float16)
    np.testing.assert_array_equal(restored, expected)


def test_weights_beyond_the_range_of_float16_stay_as_they_are() -> None:
    weights = np.array([1.0, 70_000.0], np.float32)
    restored = np.empty_like(weights)
    unpack_weights(pack_weights(weights), out=restored)
    np.testing.assert_array_equal(restored, weights)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("bits", "off"), [(8, 0.03), (4, 0.5)])
def test_buffers_are_exact(size: int, bits: int, off: float) -> None:
    vector = np.random.default_rng(size).normal(size=size + 3).astype(np.float32)
    vector[-3:] = 1e-9, 1e9, -1e-3
    packed, restored = pack_difference(vector, 3, bits), np.empty_like(vector)
    assert packed.size == packed_size(size + 3, 3, bits)
    unpack_difference(packed, restored, 3, bits)
    np.testing.assert_array_equal(restored[-3:], vector[-3:])
    np.testing.assert_allclose(restored[:-3], vector[:-3], atol=off)
