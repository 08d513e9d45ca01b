"""Recurrent layers: a state that each step of a sequence (N, T, features) updates.

The steps are expressions of other operations, one after the other. A plan and an exported file are
therefore linear in T, and gradients of any order need no further rule. One product projects the
inputs of all steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dist_net import autodiff as ad
from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import integer
from dist_net.errors import ShapeError
from dist_net.nn.layers import Dense, Described, linear
from dist_net.nn.parameters import Initializer, Scope, glorot_uniform, zeros

MAX_STEPS = 10_000  # a plan of more takes minutes to compile

State = tuple[Expression, ...]
"""The output of a step, (N, units), and further arrays of that shape for the next step."""


@dataclass(frozen=True, repr=False)
class Recurrent(Described):
    """A layer that starts from zeros and returns the last output, or the output of each step."""

    units: int
    return_sequences: bool = False
    kernel_initializer: Initializer = glorot_uniform
    recurrent_initializer: Initializer = glorot_uniform
    bias_initializer: Initializer = zeros

    GATES: ClassVar[int]
    STATES: ClassVar[int] = 1

    def __post_init__(self) -> None:
        integer(f"{type(self).__name__}: units", self.units, 1)

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if x.ndim != 3 or not 1 <= x.shape[1] <= MAX_STEPS:
            raise ShapeError(
                f"{type(self).__name__}: expected (N, T, features), T from 1 to {MAX_STEPS:,}, got "
                f"{x.shape}"
            )
        width = self.GATES * self.units
        project = Dense(width, linear, self.kernel_initializer, self.bias_initializer)
        inputs = ad.transpose(project(x, scope.child("input")), (1, 0, 2))
        shape = (self.units, width)
        kernel = scope.parameter("recurrent_kernel", shape, self.recurrent_initializer)
        bias = scope.parameter("recurrent_bias", shape[1:], self.bias_initializer)
        start = ad.broadcast_to(ad.constant(0.0, x.dtype), (x.shape[0], self.units))
        state: State = (start,) * self.STATES
        outputs = []
        for step in range(x.shape[1]):
            state = self.step(inputs[step], state[0] @ kernel + bias, *state)
            outputs.append(state[0][None])
        if not self.return_sequences:
            return state[0]
        return ad.transpose(ad.concatenate(outputs), (1, 0, 2))

    def step(self, inputs: Expression, recurrent: Expression, /, *state: Expression) -> State:
        """Return the next state; ``inputs`` and ``recurrent`` are (N, GATES · units)."""
        raise NotImplementedError

    def _gates(self, x: Expression) -> list[Expression]:
        """Split (N, gates · units) into arrays of (N, units)."""
        return [x[:, i : i + self.units] for i in range(0, x.shape[1], self.units)]


@dataclass(frozen=True, repr=False)
class GRU(Recurrent):
    """The gated recurrent unit (Cho et al. 2014): (N, T, I) to (N, units), or to (N, T, units).

    An update gate mixes the output with a candidate, to which a reset gate admits the output after
    the product, as in Keras and PyTorch. Columns of kernels: update, reset, candidate.
    """

    GATES: ClassVar[int] = 3

    def step(self, inputs: Expression, recurrent: Expression, /, *state: Expression) -> State:
        gates = 2 * self.units
        update, reset = self._gates(ad.sigmoid(inputs[:, :gates] + recurrent[:, :gates]))
        candidate = ad.tanh(inputs[:, gates:] + reset * recurrent[:, gates:])
        return (candidate + update * (state[0] - candidate),)


@dataclass(frozen=True, repr=False)
class LSTM(Recurrent):
    """Long short-term memory (Gers et al. 2000): (N, T, I) to (N, units), or to (N, T, units).

    Columns of kernels: input gate, forget gate, output gate, candidate.
    """

    GATES: ClassVar[int] = 4
    STATES: ClassVar[int] = 2

    def step(self, inputs: Expression, recurrent: Expression, /, *state: Expression) -> State:
        total, gates = inputs + recurrent, 3 * self.units
        admit, keep, emit = self._gates(ad.sigmoid(total[:, :gates]))
        cell = keep * state[1] + admit * ad.tanh(total[:, gates:])
        return emit * ad.tanh(cell), cell
