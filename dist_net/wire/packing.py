"""Training states in fewer bytes, between hosts. Pure.

A packed state is bytes in a float32 array, as messages carry them; its elements mean nothing. The
parts of a state (see ``UpdateRule``) need different precision:

- weights travel as float16 to a worker, and come back as the difference that its local steps made,
  in int8 with a scale for each block of 256 elements;
- the optimizer's vectors travel as bfloat16: they span many orders of magnitude, and a mean square
  must not become 0 or negative;
- buffers, averages of the weights and the step count travel as they are: a moving mean of 20,000
  beside a variance of 1e-3 bears no rounding.
"""

import numpy as np
from numpy.typing import NDArray

from dist_net.ground.vector import Vector

BLOCK = 256
"""The number of elements of a difference that share a scale."""


class StatePacking:
    """Pack states for the way to a worker, and for the way back.

    A state of ``state_size`` elements begins with ``trained_size`` weights and the model's buffers,
    ``model_size`` together, and ``moments`` vectors of the optimizer, of ``trained_size`` each.
    """

    def __init__(self, trained_size: int, model_size: int, moments: int, state_size: int) -> None:
        self._trained = trained_size
        self._moments = slice(model_size, model_size + moments * trained_size)
        rest = state_size - trained_size - moments * trained_size + -(-moments * trained_size // 2)
        self.result_size = -(-trained_size // BLOCK) + -(-trained_size // 4) + rest
        """The length of a packed result."""
        self.base_size = -(-trained_size // 2) + rest
        """The length of a packed state for the way to a worker."""

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
        change = state[: self._trained] - base[: self._trained]
        scales: Vector = np.maximum.reduceat(np.abs(change), np.arange(0, change.size, BLOCK))
        scales /= np.float32(127)
        with np.errstate(all="ignore"):
            ratios = np.divide(change, _each(scales, change.size), out=change)
            levels = np.rint(np.nan_to_num(ratios, copy=False), out=ratios).astype(np.int8)
        return np.concatenate([scales, _words(levels), *self._rest(state)])

    def unpack_result(self, packed: Vector, base: Vector, out: Vector) -> None:
        """Write to ``out`` the state that ``pack_result`` packed, with its changes on ``base``.

        ``base`` may be another state than the worker's: then the result is that state, changed in
        the same way. ``out`` may be ``base``.
        """
        scales, levels, rest = np.split(
            packed, np.cumsum([-(-self._trained // BLOCK), -(-self._trained // 4)])
        )
        with np.errstate(all="ignore"):
            change = levels.view(np.int8)[: self._trained] * _each(scales, self._trained)
            np.add(base[: self._trained], change, out=out[: self._trained])
        self._unpack_rest(rest, out)

    def _rest(self, state: Vector) -> list[Vector]:
        # Adding half of the last place that stays rounds to the nearest.
        bits = state[self._moments].view(np.uint32)
        moments = (bits + 0x8000 >> 16).astype(np.uint16)
        return [
            _words(moments),
            state[self._trained : self._moments.start],
            state[self._moments.stop :],
        ]

    def _unpack_rest(self, packed: Vector, out: Vector) -> None:
        moments = out[self._moments]
        words = -(-moments.size // 2)
        halves = packed[:words].view(np.uint16)[: moments.size]
        moments[:] = (halves.astype(np.uint32) << 16).view(np.float32)
        buffers = self._moments.start - self._trained
        out[self._trained : self._moments.start] = packed[words : words + buffers]
        out[self._moments.stop :] = packed[words + buffers :]


def _words(values: NDArray[np.generic]) -> Vector:
    padding = np.zeros(-values.nbytes % 4 // values.itemsize, values.dtype)
    return np.concatenate([values, padding]).view(np.float32)


def _each(scales: Vector, size: int) -> Vector:
    return np.repeat(scales, BLOCK)[:size]
