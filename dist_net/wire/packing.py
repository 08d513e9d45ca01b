"""Training states in fewer bytes, between hosts. Pure.

A packed state is bytes in a float32 array, as messages carry them; its elements mean nothing. The
parts of a state (see ``UpdateRule``) need different precision:

- weights travel as float16 to a worker, and come back as the difference that its local steps made,
  in int8 with a scale for each block of 256 elements;
- the optimizer's vectors travel as floats of 8 bits (E5M2) with a scale for each block, both ways:
  a mean square spans many orders of magnitude, and must not become 0 or negative;
- buffers, averages of the weights and the step count travel as they are: a moving mean of 20,000
  beside a variance of 1e-3 bears no rounding.
"""

import numpy as np
from numpy.typing import NDArray

from dist_net.vector import Vector

BLOCK = 256
"""The number of elements of a vector that share a scale."""

CODED = 1 + BLOCK // 4  # the length of a packed block: its scale, and a byte for each element

MANTISSA = 2
LOWEST = (127 << MANTISSA) - 126
"""A positive 8-bit float, 1 to 127, has the upper bits of a float32, less ``LOWEST``; 127 is 1."""

RATIOS = ((np.arange(128, dtype=np.uint32) + LOWEST) << 23 - MANTISSA).view(np.float32)
RATIOS[0] = 0
RATIOS = np.concatenate([RATIOS, -RATIOS])
"""The value of each 8-bit float, as a share of the largest in its block."""

GOLDEN = np.uint32(2654435769)  # 2^32 / φ: its multiples are spread evenly over all 32 bits


class StatePacking:
    """Pack states for the way to a worker, and for the way back.

    A state of ``state_size`` elements begins with ``trained_size`` weights and the model's buffers,
    ``model_size`` together, and ``moments`` vectors of the optimizer, of ``trained_size`` each.
    """

    def __init__(self, trained_size: int, model_size: int, moments: int, state_size: int) -> None:
        self._trained = trained_size
        self._moments = slice(model_size, model_size + moments * trained_size)
        self._coded = CODED * -(-trained_size // BLOCK)
        rest = state_size - trained_size - moments * trained_size
        self.result_size = (1 + moments) * self._coded + rest
        """The length of a packed result."""

    def pack_base(self, state: Vector) -> Vector:
        """Return the state that a worker begins from, packed.

        It stays as it is if a weight exceeds the range of float16 (65,504), and if packing does
        not make it shorter, because it has one weight.
        """
        with np.errstate(over="ignore"):
            half = state[: self._trained].astype(np.float16)
        packed = np.concatenate([_words(half), *self._rest(state)])
        return packed if np.isfinite(half).all() and packed.size < state.size else state

    def unpack_base(self, packed: Vector, out: Vector) -> None:
        """Write to ``out`` the state that ``pack_base`` packed, as it was rounded."""
        if packed.size == out.size:
            np.copyto(out, packed)
            return
        words = -(-self._trained // 2)
        out[: self._trained] = packed[:words].view(np.float16)[: self._trained]
        self._unpack_rest(packed[words:], out)

    def pack_result(self, base: Vector, state: Vector) -> Vector:
        """Return a state after local steps from ``base``, packed.

        Each weight's change is off by half a scale at most, which is 1/127 of the largest change in
        its block. A block with a change that is not finite becomes nan.
        """
        change = _in_blocks(state[: self._trained] - base[: self._trained])
        scales = np.abs(change).max(1, keepdims=True) / np.float32(127)
        with np.errstate(all="ignore"):
            change /= scales
            levels = np.rint(np.nan_to_num(change, copy=False), out=change).astype(np.int8)
        return np.concatenate([_coded(scales, levels), *self._rest(state)])

    def unpack_result(self, packed: Vector, base: Vector, out: Vector) -> None:
        """Write to ``out`` the state that ``pack_result`` packed, with its changes on ``base``.

        ``base`` may be another state than the worker's: then the result is that state, changed in
        the same way. ``out`` may be ``base``.
        """
        scales, levels = _decoded(packed[: self._coded])
        with np.errstate(all="ignore"):
            change = (levels.view(np.int8) * scales).ravel()[: self._trained]
            np.add(base[: self._trained], change, out=out[: self._trained])
        self._unpack_rest(packed[self._coded :], out)

    def _rest(self, state: Vector) -> list[Vector]:
        """Return the packed parts behind the weights."""
        moments = state[self._moments].reshape(-1, self._trained, copy=False)
        return [
            *(_packed_floats(_in_blocks(each), state[-1]) for each in moments),
            state[self._trained : self._moments.start],
            state[self._moments.stop :],
        ]

    def _unpack_rest(self, packed: Vector, out: Vector) -> None:
        for moment in out[self._moments].reshape(-1, self._trained, copy=False):
            scales, floats = _decoded(packed[: self._coded])
            with np.errstate(all="ignore"):
                moment[:] = (RATIOS[floats] * scales).ravel()[: self._trained]
            packed = packed[self._coded :]
        buffers = self._moments.start - self._trained
        out[self._trained : self._moments.start] = packed[:buffers]
        out[self._moments.stop :] = packed[buffers:]


def _packed_floats(values: Vector, steps: np.float32) -> Vector:
    """Return blocks as 8-bit floats; only 0 becomes 0.

    An element is rounded up in some turns of ``steps``, so that small changes of a mean square,
    which rounding to the nearest would undo, are kept on average.
    """
    scales = np.abs(values).max(1, keepdims=True)
    with np.errstate(all="ignore"):
        bits = np.abs(values / scales).view(np.uint32)
        turns = (np.arange(BLOCK, dtype=np.uint32) + steps.astype(np.uint32)) * GOLDEN
    bits += turns >> 9 + MANTISSA
    bits >>= 23 - MANTISSA
    levels = np.clip(bits.view(np.int32) - LOWEST, values != 0, 127)
    return _coded(scales, levels.astype(np.uint8) | np.signbit(values) * np.uint8(128))


def _in_blocks(values: Vector) -> Vector:
    """Return ``values``, padded with zeros, as ``(blocks, BLOCK)``."""
    return np.pad(values, (0, -values.size % BLOCK)).reshape(-1, BLOCK, copy=False)


def _coded(scales: Vector, bytes_of: NDArray[np.generic]) -> Vector:
    """Return the scales ``(blocks, 1)`` and the bytes ``(blocks, BLOCK)`` as one vector."""
    return np.concatenate([scales.ravel(), bytes_of.view(np.float32).ravel()])


def _decoded(packed: Vector) -> tuple[Vector, NDArray[np.uint8]]:
    """Return the scales ``(blocks, 1)`` and the bytes ``(blocks, BLOCK)``."""
    blocks = packed.size // CODED
    return packed[:blocks, np.newaxis], packed[blocks:].view(np.uint8).reshape(
        blocks, BLOCK, copy=False
    )


def _words(values: NDArray[np.generic]) -> Vector:
    """Return the bytes of ``values``, padded, as float32 words."""
    padding = np.zeros(-values.nbytes % 4 // values.itemsize, values.dtype)
    return np.concatenate([values, padding]).view(np.float32)
