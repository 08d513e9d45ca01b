"""Which tensors of a graph hold the values of which expressions.

A tensor may hold an expression with its axes in another order. Convolutions and pools give maps
whose axis of channels comes second, as ONNX has it; what follows them is computed in that order
too, and a Transpose is added only where an operation needs ours. So those that would cancel are
never there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dist_net.autodiff import Array, Expression
from dist_net.errors import NotExportableError
from dist_net.export.graph import Graph, integers

Axes = tuple[int, ...]

CHANNELS_SECOND: Axes = (0, 3, 1, 2)


class Tensor(NamedTuple):
    """A tensor that holds an expression; its axis i is the expression's axis ``axes[i]``."""

    name: str
    axes: Axes


class KnownArray(NamedTuple):
    """The value of an expression that depends on weights and constants alone."""

    name: str
    array: Array


class Translation:
    """The expressions of a network that are in the graph by now.

    The network is given for two numbers of inputs. A length or a value that differs between them
    depends on that number, and is computed where the graph is run; ``inputs`` are the network's.
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
        """Remembers that ``other`` is ``node`` at the second number of inputs."""
        self._others[id(node)] = other

    def hold(self, node: Expression, tensor: Tensor) -> None:
        """Remembers that ``tensor`` holds ``node``."""
        self._tensors[id(node)] = tensor

    def know(self, node: Expression, value: KnownArray) -> None:
        """Remembers a value that is the same for any number of inputs."""
        self._known[id(node)] = value

    def other(self, node: Expression) -> Expression:
        """The node at the second number of inputs."""
        return self._others[id(node)]

    def array(self, node: Expression) -> Array | None:
        """The node's value, if it is known beforehand."""
        known = self._known.get(id(node))
        return None if known is None else known.array

    def held(self, node: Expression) -> Tensor:
        """The tensor in which the node was computed."""
        if id(node) in self._known:
            return Tensor(self.named(node, own_axes(node)), own_axes(node))
        return self._tensors[id(node)]

    def named(self, node: Expression, axes: Axes | None = None) -> str:
        """The name of a tensor that holds the node with its axes in this order, or in our own."""
        axes = own_axes(node) if axes is None else axes
        if id(node) in self._known:
            return self._constant(node, axes)
        tensor = self._tensors[id(node)]
        if tensor.axes == axes:
            return tensor.name
        order = tuple(tensor.axes.index(axis) for axis in axes)
        return self.graph.add("Transpose", tensor.name, perm=order)

    def operand(self, node: Expression, of: Expression, axes: Axes) -> str:
        """The node's tensor as it broadcasts in an operation whose result has these axes."""
        if node.ndim == of.ndim:
            return self.named(node, axes)
        if node.ndim == 0 or axes == own_axes(of):
            return self.named(node)
        return self._constant(node, axes)

    def axes_for(self, node: Expression) -> Axes:
        """The order of axes in which an operation that broadcasts is computed with fewest moves."""
        computed = [each for each in node.inputs if self.array(each) is None]
        if any(0 < each.ndim < node.ndim for each in computed):
            return own_axes(node)
        whole = [self.held(each).axes for each in computed if each.ndim == node.ndim]
        return next((axes for axes in whole if axes != own_axes(node)), own_axes(node))

    def _constant(self, node: Expression, axes: Axes) -> str:
        """A known value as a constant; axes of length one are added where ``axes`` has more."""
        if (id(node), axes) not in self._constants:
            name, array = self._known[id(node)]
            whole = array[(np.newaxis,) * (len(axes) - array.ndim)]
            self._constants[id(node), axes] = self.graph.constant(whole.transpose(axes), name)
        return self._constants[id(node), axes]

    def lengths(self, node: Expression) -> tuple[int | None, ...]:
        """The node's shape, with None for each length that depends on the number of inputs."""
        return tuple(
            here if here == there else None
            for here, there in zip(node.shape, self.other(node).shape, strict=True)
        )

    def reshaped(self, tensor: str, lengths: Sequence[int | None]) -> Tensor:
        """The tensor in this shape, in which None is what the number of inputs makes of it."""
        if lengths.count(None) > 1:
            raise NotExportableError(
                f"a shape {lengths} of which two lengths depend on the number of inputs; expected "
                f"one at most"
            )
        shape = integers(*(-1 if length is None else length for length in lengths))
        return Tensor(self.graph.add("Reshape", tensor, shape), tuple(range(len(lengths))))

    def expanded(self, tensor: str, node: Expression, axes: Axes, stays: Axes = ()) -> str:
        """The tensor broadcast to the node's shape, but for the axes that have their length."""
        lengths = self.lengths(node)
        parts: list[str | Array] = [
            integers(1) if axis in stays else self._length(node, axis, lengths[axis])
            for axis in axes
        ]
        if all(isinstance(part, np.ndarray) for part in parts):
            return self.graph.add("Expand", tensor, np.concatenate(parts))
        return self.graph.add("Expand", tensor, self.graph.add("Concat", *parts, axis=0))

    def multiple(self, factor: int) -> str:
        """A vector of one integer: ``factor`` times the number of inputs."""
        name, axes = self._inputs
        first = axes.index(0)
        count = self.graph.add("Shape", name, start=first, end=first + 1)
        return count if factor == 1 else self.graph.add("Mul", count, integers(factor))

    def _length(self, node: Expression, axis: int, known: int | None) -> str | Array:
        if known is not None:
            return integers(known)
        few, many = self._counts
        here, there = node.shape[axis], self.other(node).shape[axis]
        if here * many != there * few or here % few:
            raise NotExportableError(
                f"{node}: it has {here} elements along axis {axis} for {few} inputs and {there} "
                f"for {many}; expected a multiple of the number of inputs"
            )
        return self.multiple(here // few)


def own_axes(node: Expression) -> Axes:
    """The order of axes that the expression itself has."""
    return tuple(range(node.ndim))
