"""Layers of sequences, (N, T, features): recurrent, attention, convolution and pools along T.

In recurrent layers, each step updates a state. The steps are expressions of other operations, one
after the other. A plan and an exported file are therefore linear in T, and gradients of any order
need no further rule. One product projects the inputs of all steps. ``fused`` is faster in training.
"""

from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np

from dist_net import autodiff as ad
from dist_net.autodiff import Expression
from dist_net.autodiff.operations.recurrent import lstm_outputs
from dist_net.errors import ParameterError, ShapeError
from dist_net.nn.layers import AveragePool, Conv2D, Dense, Described, MaxPool, fields_of, linear
from dist_net.nn.parameters import Initializer, Scope, glorot_uniform, zeros

MAX_STEPS = 10_000  # a plan of more takes minutes to compile
HIDDEN = -1e9  # the score of a place that a mask hides; finite, so where all are hidden is no nan

State = tuple[Expression, ...]
"""The output of a step, (N, units), called "state", and further arrays for the next step."""


class Recurrent(Described):
    """A layer that returns the last output, or the output of each step.

    A record has the ``sequence``, (N, T, features), and any of the states to start from, (N, units)
    and zeros by default, and ``mask``, bools (N, T): a step where it is false keeps the state.
    ``return_state``: return a record of the ``output`` and the last states, from which a further
    call continues. ``reverse``: go from the last step to the first; the outputs have the order of
    the inputs.
    """

    units: int
    return_sequences: bool = False
    kernel_initializer: Initializer = glorot_uniform
    recurrent_initializer: Initializer = glorot_uniform
    bias_initializer: Initializer = zeros
    return_state: bool = False
    reverse: bool = False

    GATES: ClassVar[int]
    STATES: ClassVar[tuple[str, ...]] = ("state",)

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        is_plain = not (x.dtype.names or self.return_state)
        x, mask, state = self._inputs(x)
        width = self.GATES * self.units
        project = Dense(width, linear, self.kernel_initializer, self.bias_initializer)
        inputs = project(ad.transpose(x, (1, 0, 2)), scope.child("input"))
        shape = (self.units, width)
        kernel = scope.parameter("recurrent_kernel", shape, self.recurrent_initializer)
        bias = scope.parameter("recurrent_bias", shape[1:], self.bias_initializer)
        order = slice(None, None, -1 if self.reverse else 1)
        fused = self.fused(inputs[order] + bias, kernel) if is_plain and scope.training else None
        if fused is not None:
            return ad.transpose(fused[order], (1, 0, 2)) if self.return_sequences else fused[-1]
        outputs = []
        for step in range(x.shape[1])[order]:
            before = state
            state = self.step(inputs[step], state[0] @ kernel + bias, *state)
            if mask is not None:
                pairs = zip(state, before, strict=True)
                state = tuple(ad.where(mask[:, step, None], *pair) for pair in pairs)
            outputs.append(state[0][None])
        output = state[0]
        if self.return_sequences:
            output = ad.transpose(ad.concatenate(outputs[order]), (1, 0, 2))
        if not self.return_state:
            return output
        return ad.record(output=output, **dict(zip(self.STATES, state, strict=True)))

    def _inputs(self, x: Expression) -> tuple[Expression, Expression | None, State]:
        """Return the sequence, the mask and the states to start from."""
        name = type(self).__name__
        given = fields_of(name, x, "sequence", "mask", *self.STATES)
        x, mask = given["sequence"], given.get("mask")
        start = ad.broadcast_to(ad.constant(0.0, x.dtype), (*x.shape[:1], self.units))
        state = tuple(given.get(each, start) for each in self.STATES)
        fits = x.ndim == 3 and 1 <= x.shape[1] <= MAX_STEPS
        fits = fits and all(each.shape == start.shape for each in state)
        if not fits or (mask is not None and mask.shape != x.shape[:2]):
            found = " and ".join(f"{name} {each.shape}" for name, each in given.items())
            raise ShapeError(
                f"{name}: expected (N, T, features), T from 1 to {MAX_STEPS:,}, a mask (N, T) and "
                f"states (N, {self.units}), got {found}"
            )
        return x, mask, state

    def step(self, inputs: Expression, recurrent: Expression, /, *state: Expression) -> State:
        """Return the next state; ``inputs`` and ``recurrent`` are (N, GATES · units)."""
        raise NotImplementedError

    def fused(self, inputs: Expression, kernel: Expression, /) -> Expression | None:
        """Return all outputs, (T, N, units), by one operation for training; None if none fits."""
        return None


class GRU(Recurrent):
    """The gated recurrent unit (Cho et al. 2014): (N, T, I) to (N, units), or to (N, T, units).

    An update gate mixes the output with a candidate, to which a reset gate admits the output after
    the product, as in Keras and PyTorch. Columns of kernels: update, reset, candidate.
    """

    GATES: ClassVar[int] = 3

    def step(self, inputs: Expression, recurrent: Expression, /, *state: Expression) -> State:
        gates = 2 * self.units
        update, reset = ad.split(ad.sigmoid(inputs[:, :gates] + recurrent[:, :gates]), 2, 1)
        candidate = ad.tanh(inputs[:, gates:] + reset * recurrent[:, gates:])
        return (candidate + update * (state[0] - candidate),)


class LSTM(Recurrent):
    """Long short-term memory (Gers et al. 2000): (N, T, I) to (N, units), or to (N, T, units).

    Columns of kernels: input gate, forget gate, output gate, candidate.
    """

    GATES: ClassVar[int] = 4
    STATES: ClassVar[tuple[str, ...]] = ("state", "cell")

    def step(self, inputs: Expression, recurrent: Expression, /, *state: Expression) -> State:
        total, gates = inputs + recurrent, 3 * self.units
        admit, keep, emit = ad.split(ad.sigmoid(total[:, :gates]), 3, 1)
        cell = keep * state[1] + admit * ad.tanh(total[:, gates:])
        return emit * ad.tanh(cell), cell

    def fused(self, inputs: Expression, kernel: Expression, /) -> Expression | None:
        return lstm_outputs(inputs, kernel)


class Bidirectional(Described):
    """A ``GRU`` or ``LSTM``, and a second one with ``reverse``, side by side on the last axis.

    Each has its own parameters. Given and returned states are side by side too.
    """

    layer: Recurrent

    def __post_init__(self) -> None:
        if not isinstance(self.layer, Recurrent):
            raise ParameterError(f"Bidirectional: {self.layer!r}; expected a layer such as GRU(8)")

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        units, halves = self.layer.units, []
        backward = replace(self.layer, reverse=not self.layer.reverse)
        for layer, name in ((self.layer, "forward"), (backward, "backward")):
            own = slice(units, None) if layer is backward else slice(units)
            given = {each: x[each] for each in x.dtype.names or ()}
            given |= {each: given[each][:, own] for each in layer.STATES if each in given}
            halves.append(layer(ad.record(**given) if given else x, scope.child(name)))
        if not self.layer.return_state:
            return ad.concatenate(halves, -1)
        parts = {each: [half[each] for half in halves] for each in ("output", *backward.STATES)}
        return ad.record(**{each: ad.concatenate(both, -1) for each, both in parts.items()})


class MultiHeadAttention(Described):
    """Attention: (N, T, D) to (N, T, D), for ``heads`` that divide D (Vaswani et al. 2017).

    A record has the ``query``, (N, T, D), and any of ``value`` and ``key``, (N, S, D), and
    ``mask``, bools (N, S) or (N, T, S) that are true for the places to attend to. The value is the
    query by default, which is self-attention, and the key is the value. ``causal``: a place attends
    to itself and the places before it only. The parameters ``kernel`` and ``bias`` compute the
    queries, keys and values, in this order, each (heads, D / heads).
    """

    heads: int
    causal: bool = False
    kernel_initializer: Initializer = glorot_uniform

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        given = fields_of("MultiHeadAttention", x, "query", "value", "key", "mask")
        query, mask = given["query"], given.get("mask")
        value = given.get("value", query)
        key = given.get("key", value)
        batch, width, sources = query.shape[:1], query.shape[-1], value.shape[1:2]
        fits = query.ndim == 3 and value.shape == key.shape == (*batch, *sources, width)
        masks = (*batch, *sources), (*query.shape[:2], *sources)
        if not fits or width % self.heads or (mask is not None and mask.shape not in masks):
            found = " and ".join(f"{name} {each.shape}" for name, each in given.items())
            raise ShapeError(
                f"MultiHeadAttention: expected (N, T, D) with D divisible by {self.heads} heads, "
                f"values and keys (N, S, D), a mask (N, S) or (N, T, S), got {found}"
            )
        kernel = scope.parameter("kernel", (width, 3 * width), self.kernel_initializer)
        bias = scope.parameter("bias", (3 * width,), zeros)

        def by_head(x: Expression, first: int, count: int) -> list[Expression]:
            columns = slice(first * width, (first + count) * width)
            projected = x @ kernel[:, columns] + bias[columns]
            split = ad.reshape(projected, (*x.shape[:2], count, self.heads, width // self.heads))
            return [split[:, :, i].transpose(0, 2, 1, 3) for i in range(count)]

        if query is key is value:  # one product
            queries, keys, values = by_head(query, 0, 3)
        else:
            queries, keys, values = by_head(query, 0, 1) + by_head(key, 1, 1) + by_head(value, 2, 1)
        scores = (queries * (width // self.heads) ** -0.5) @ ad.matrix_transpose(keys)
        if mask is not None:
            of_heads = ad.reshape(mask, (*batch, 1, -1, *sources))
            scores = ad.where(of_heads, scores, HIDDEN)
        if self.causal:
            later = np.triu(np.full(scores.shape[2:], -np.inf, query.dtype), 1)
            scores = scores + ad.constant(later)
        attended = ad.reshape((ad.softmax(scores) @ values).transpose(0, 2, 1, 3), query.shape)
        kernel = scope.parameter("output_kernel", (width, width), self.kernel_initializer)
        return attended @ kernel + scope.parameter("output_bias", (width,), zeros)


class Conv1D(Conv2D):
    """``Conv2D`` along T: (N, T, C) to (N, T', filters). The kernel is (1, size, C, filters).

    ``padding`` is "same", "valid", a number, or ((0, 0), (before, after)): with (size - 1, 0), a
    step sees itself and those before it only.
    """

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return _along_row(Conv2D, self, x, scope)


class MaxPool1D(MaxPool):
    """``MaxPool`` along T: (N, T, C) to (N, T', C). ``padding`` is as for ``Conv1D``."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return _along_row(MaxPool, self, x, scope)


class AveragePool1D(AveragePool):
    """``AveragePool`` along T: (N, T, C) to (N, T', C). ``padding`` is as for ``Conv1D``."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return _along_row(AveragePool, self, x, scope)


def _along_row(kind: type[Any], layer: Any, x: Expression, scope: Scope) -> Expression:
    """Apply the ``kind`` of maps with the settings of ``layer`` to maps of one row."""
    if x.ndim != 3:
        raise ShapeError(f"{type(layer).__name__}: expected (N, T, C), got {x.shape}")
    settings = dict(vars(layer))
    for name in {"size", "stride", "dilation"} & settings.keys():
        settings[name] = None if settings[name] is None else (1, settings[name])
    if isinstance(layer.padding, int | np.integer):
        settings["padding"] = (0, 0), (layer.padding, layer.padding)
    return cast(Expression, kind(**settings)(x[:, None], scope)[:, 0])
