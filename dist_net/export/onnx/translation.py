"""The tensors of a graph that contain the values of expressions.

A tensor may have its axes in another order than the expression. ONNX's convolutions and pools
return maps with the channels second. The operations after them keep that order, and a Transpose is
added only if an operation needs ours. So the graph has no Transposes that cancel each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dist_net.autodiff import Array, Expression
from dist_net.errors import ExportError
from dist_net.export.onnx.graph import Graph, integers

Axes = tuple[int, ...]

CHANNELS_SECOND: Axes = (0, 3, 1, 2)


class Tensor(NamedTuple):
    """The tensor of an expression; its axis i is the expression's axis ``axes[i]``."""

    name: str
    axes: Axes


class KnownArray(NamedTuple):
    """The value of an expression that depends on weights and constants alone."""

    name: str
    array: Array


class Translation:
    """The part of a network that has been added to the graph.

    Each node has a counterpart in the network for a second number of inputs. A length that differs
    between them depends on that number and is computed when the graph runs.
    """

    def __init__(self, graph: Graph, inputs: Tensor, counts: tuple[int, int]) -> None:
        self.graph = graph
        self._inputs = inputs
        self._counts = counts
        self._tensors: dict[int, Tensor] = {}
        self._known: dict[int, KnownArray] = {}
        self._constants: dict[tuple[int, Axes], str] = {}
        self._others: dict[int, Expression] = {}

    def meet(self, node: Expression, other: Expression) -> None:
        """Record that ``other`` is the counterpart of ``node``."""
        self._others[id(node)] = other

    def hold(self, node: Expression, tensor: Tensor) -> None:
        """Record that ``tensor`` contains the value of ``node``."""
        self._tensors[id(node)] = tensor

    def know(self, node: Expression, value: KnownArray) -> None:
        """Record a value that does not depend on the inputs or their number."""
        self._known[id(node)] = value

    def other(self, node: Expression) -> Expression:
        """Return the counterpart of ``node``."""
        return self._others[id(node)]

    def array(self, node: Expression) -> Array | None:
        """Return the node's value, or None if it depends on the inputs."""
        known = self._known.get(id(node))
        return None if known is None else known.array

    def held(self, node: Expression) -> Tensor:
        """Return the tensor in which the node was computed."""
        if id(node) in self._known:
            return Tensor(self.named(node, own_axes(node)), own_axes(node))
        return self._tensors[id(node)]

    def named(self, node: Expression, axes: Axes | None = None) -> str:
        """Return the name of the node's tensor with this order of axes; None: our own order."""
        axes = own_axes(node) if axes is None else axes
        if id(node) in self._known:
            return self._constant(node, axes)
        tensor = self._tensors[id(node)]
        if tensor.axes == axes:
            return tensor.name
        order = tuple(tensor.axes.index(axis) for axis in axes)
        return self.graph.add("Transpose", tensor.name, perm=order)

    def operand(self, node: Expression, user: Expression, axes: Axes) -> str:
        """Return the node's tensor as it broadcasts in ``user``, whose tensor has these axes."""
        if node.ndim == user.ndim:
            return self.named(node, axes)
        if node.ndim == 0 or axes == own_axes(user):
            return self.named(node)
        return self._constant(node, axes)

    def axes_for(self, node: Expression) -> Axes:
        """Return the order of axes that needs the fewest Transposes of the node's inputs."""
        computed = [each for each in node.inputs if self.array(each) is None]
        if any(0 < each.ndim < node.ndim for each in computed):
            return own_axes(node)
        whole = [self.held(each).axes for each in computed if each.ndim == node.ndim]
        return next((axes for axes in whole if axes != own_axes(node)), own_axes(node))

    def _constant(self, node: Expression, axes: Axes) -> str:
        """Return the constant of a known value, with leading axes of length one if necessary."""
        if (id(node), axes) not in self._constants:
            name, array = self._known[id(node)]
            whole = array[(np.newaxis,) * (len(axes) - array.ndim)]
            self._constants[id(node), axes] = self.graph.constant(whole.transpose(axes), name)
        return self._constants[id(node), axes]

    def lengths(self, node: Expression) -> tuple[int | None, ...]:
        """Return the node's shape, with None for lengths that depend on the number of inputs."""
        return tuple(
            length if length == other else None
            for length, other in zip(node.shape, self.other(node).shape, strict=True)
        )

    def reshaped(self, tensor: str, lengths: Sequence[int | None]) -> Tensor:
        """Reshape a tensor; at most one length may depend on the number of inputs (None)."""
        if lengths.count(None) > 1:
            raise ExportError(
                f"two lengths of a shape {lengths} depend on the number of inputs; expected at "
                f"most one"
            )
        shape = integers(*(-1 if length is None else length for length in lengths))
        return Tensor(self.graph.add("Reshape", tensor, shape), tuple(range(len(lengths))))

    def expanded(self, tensor: str, node: Expression, axes: Axes, stays: Axes = ()) -> str:
        """Broadcast a tensor to the node's shape, except for the axes in ``stays``."""
        lengths = self.lengths(node)
        parts: list[str | Array] = [
            integers(1) if axis in stays else self._length(node, axis, lengths[axis])
            for axis in axes
        ]
        if all(isinstance(part, np.ndarray) for part in parts):
            return self.graph.add("Expand", tensor, np.concatenate(parts))
        return self.graph.add("Expand", tensor, self.graph.add("Concat", *parts, axis=0))

    def multiple(self, factor: int) -> str:
        """Return a vector of one integer: ``factor`` times the number of inputs."""
        name, axes = self._inputs
        first = axes.index(0)
        count = self.graph.add("Shape", name, start=first, end=first + 1)
        return count if factor == 1 else self.graph.add("Mul", count, integers(factor))

    def _length(self, node: Expression, axis: int, known: int | None) -> str | Array:
        if known is not None:
            return integers(known)
        few, many = self._counts
        length, other = node.shape[axis], self.other(node).shape[axis]
        if length * many != other * few or length % few:
            raise ExportError(
                f"{node} has {length} elements along axis {axis} for {few} inputs and {other} for "
                f"{many}; expected a multiple of the number of inputs"
            )
        return self.multiple(length // few)


def own_axes(node: Expression) -> Axes:
    """Return the order of axes of the expression itself."""
    return tuple(range(node.ndim))
