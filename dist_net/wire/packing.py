"""Vectors in fewer bytes, between hosts: weights as float16, differences as int8 or int4. Pure.

A packed vector is bytes in a float32 array, as messages carry them; its elements mean nothing.
"""

import numpy as np

from dist_net.vector import Vector

BLOCKS = {8: 256, 4: 64}
"""The number of elements of a difference that share a scale, by the bits of each element."""


def pack_weights(weights: Vector) -> Vector:
    """Return the weights as float16, packed.

    They stay as they are if one exceeds the range of float16 (65,504), or nothing would be saved.
    """
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16)
    packed = _packed(half)
    return packed if packed.size < weights.size and np.isfinite(half).all() else weights


def unpack_weights(packed: Vector, out: Vector) -> None:
    """Write to ``out`` the weights that ``pack_weights`` made this of, as they were rounded."""
    np.copyto(out, packed if packed.size == out.size else packed.view(np.float16)[: out.size])


def packed_size(size: int, buffers: int = 0, bits: int = 8) -> int:
    """Return the length of a packed difference of ``size`` elements."""
    trained = size - buffers
    return -(-trained // BLOCKS[bits]) + -(-trained * bits // 32) + buffers


def pack_difference(difference: Vector, buffers: int = 0, bits: int = 8) -> Vector:
    """Return a float32 scale for each block of elements, and all in ``bits`` (8 or 4), packed.

    Each element is off by half a scale at most, a scale being 1/127 (1/7 for 4 bits) of the largest
    of its block. A block with an element that is not finite becomes nan. The last ``buffers``
    elements stay as they are: moving means and variances differ by orders of magnitude, and a
    variance must not become negative.
    """
    trained = difference[: difference.size - buffers]
    scales: Vector = np.maximum.reduceat(np.abs(trained), np.arange(0, trained.size, BLOCKS[bits]))
    scales /= np.float32(2 ** (bits - 1) - 1)
    with np.errstate(all="ignore"):
        ratios = np.divide(trained, _each(scales, trained.size, bits))
        levels = np.rint(np.nan_to_num(ratios, copy=False), out=ratios).astype(np.int8)
    if bits == 4:
        pairs = np.append(levels, np.zeros(levels.size % 2, np.int8)).reshape(-1, 2, copy=False)
        levels = pairs[:, 0] & 15 | pairs[:, 1] << 4
    return np.concatenate([scales, _packed(levels), difference[trained.size :]])


def unpack_difference(packed: Vector, out: Vector, buffers: int = 0, bits: int = 8) -> None:
    """Write to ``out`` the difference that ``pack_difference`` made this of, as it was rounded."""
    trained = out.size - buffers
    blocks = -(-trained // BLOCKS[bits])
    scales, levels, exact = np.split(packed, [blocks, packed.size - buffers])
    with np.errstate(all="ignore"):
        whole = levels.view(np.int8)
        if bits == 4:
            whole = np.stack([whole << 4 >> 4, whole >> 4], axis=1).ravel()
        np.multiply(whole[:trained], _each(scales, trained, bits), out=out[:trained])
    out[trained:] = exact


def _packed(values: np.ndarray) -> Vector:
    return np.concatenate(
        [values, np.zeros(-values.nbytes % 4 // values.itemsize, values.dtype)]
    ).view(np.float32)


def _each(scales: Vector, size: int, bits: int) -> Vector:
    return np.repeat(scales, BLOCKS[bits])[:size]
