"""The engine, 5 of 5: plans, which are graphs compiled to calls on preallocated, reused buffers.

    outputs ─rewrite─▶ fewer nodes ─steps─▶ an order ─liveness─▶ slots ─bind─▶ calls

A plan is compiled once for its shapes. Binding it to the arrays of its variables and outputs makes
all views and all arguments of calls, so that a run only makes the calls. All bindings of a plan
share its buffers, so only one of them may run at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dist_net.autodiff.arrays import Arena, Array, Call
from dist_net.autodiff.compiler.rewrite import rewrite
from dist_net.autodiff.compiler.steps import assign_slots, materialise, steps_of, unreshaped
from dist_net.autodiff.expression import Constant, Expression, Variable, View, topological_order
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations.normalization import MeanOfParts
from dist_net.errors import GraphError, ShapeError


class BoundPlan:
    """A plan with its arrays: ``run()`` fills ``outputs`` by the calls of each step's node."""

    def __init__(
        self, steps: list[tuple[Expression, list[Call]]], outputs: tuple[Array, ...]
    ) -> None:
        self.steps = steps
        self.outputs = outputs
        self._calls = [call for _, calls in steps for call in calls]

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> tuple[Array, ...]:
        """Fill and return the outputs; overflow yields inf or nan (IEEE 754) without a warning."""
        with np.errstate(all="ignore"):
            for call in self._calls:
                call()
        return self.outputs

    def stages(self) -> Iterator[tuple[MeanOfParts, Any]]:
        """Run; yield each ``MeanOfParts`` and this part's vector, for the caller to replace."""
        for node, calls in self.steps:
            for call in calls:
                result = call()
            if isinstance(node.operation, MeanOfParts):
                yield node.operation, result


class Plan:
    """The compiled form of some outputs; see ``compile``."""

    def __init__(self, outputs: Sequence[Expression], pool: ThreadPool, arena: Arena) -> None:
        self._pool = pool
        self._outputs = materialise(rewrite(outputs))
        self._order = topological_order(self._outputs)
        self._steps = steps_of(self._outputs)
        self.variables = {
            node.operation.name: node
            for node in self._order
            if isinstance(node.operation, Variable)
        }
        self._placed = {id(unreshaped(each)): i for i, each in enumerate(self._outputs)}
        self._slot_of, sizes = assign_slots(self._steps, self._placed.keys())
        self._slots = arena.pieces(sizes)
        self.buffer_bytes = sum(sizes)

    def __str__(self) -> str:
        """Return a table of the steps with the operation, shape and buffer of each."""
        outputs = self._outputs
        rows = [("step", "operation", "shape", "buffer", "bytes")]
        for i, step in enumerate(self._steps):
            node = step.output
            place = self._placed.get(id(node))
            buffer = str(self._slot_of[id(node)]) if place is None else f"output {place}"
            label = ", ".join(each.operation.label for each in step.nodes)
            rows.append((str(i), label, str(node.shape), buffer, f"{node.nbytes:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{i:>{widths[0]}}  {label:{widths[1]}}  {shape:{widths[2]}}  {buffer:{widths[3]}}  "
            f"{nbytes:>{widths[4]}}"
            for i, label, shape, buffer, nbytes in rows
        ]
        lines.append(
            f"steps: {len(self._steps)}; buffers: {len(self._slots)}, {self.buffer_bytes:,} bytes; "
            f"outputs: {len(outputs)}, {sum(each.nbytes for each in outputs):,} bytes"
        )
        return "\n".join(lines)

    def bind(
        self, arrays: Mapping[str, Array], into: Sequence[Array | None] | None = None
    ) -> BoundPlan:
        """Return the plan bound to these arrays.

        ``arrays`` maps each variable's name to a C-contiguous array of its shape and dtype, which
        is borrowed and read at each run. ``into[i]`` is the C-contiguous array for output i; None:
        allocate a new array. Raise ``GraphError`` for a missing variable, a wrong number of output
        arrays, and an output array that is read-only or shares memory with another or with
        ``arrays``; ``ShapeError`` for an array of another shape, dtype or layout.
        """
        places = [None] * len(self._outputs) if into is None else list(into)
        if len(places) != len(self._outputs):
            raise GraphError(f"bind: {len(places)} arrays for {len(self._outputs)} outputs")
        outputs = tuple(
            np.empty(node.shape, node.dtype) if place is None else _fitting("output", node, place)
            for node, place in zip(self._outputs, places, strict=True)
        )
        known = self._views(arrays, outputs)
        given = [known[id(node)] for node in self.variables.values()]
        _require_apart([each for each in places if each is not None], given)
        bound = []
        for step in self._steps:
            inputs = [known[id(each)] for each in step.inputs]
            bound.append((step.output, step.bind(inputs, known[id(step.output)], self._pool)))
        return BoundPlan(bound, outputs)

    def _views(self, arrays: Mapping[str, Array], outputs: Sequence[Array]) -> dict[int, Array]:
        """Return the arrays of all nodes that have one, by the node's id."""
        known: dict[int, Array] = {}
        for node in self._order:
            match node.operation:
                case Variable(name):
                    if name not in arrays:
                        raise GraphError(
                            f"bind: no array for variable {name!r}; given: {sorted(arrays)}"
                        )
                    known[id(node)] = _fitting(name, node, arrays[name])
                case Constant(value):
                    known[id(node)] = value
                case View() as operation:
                    known[id(node)] = operation.view(known[id(node.inputs[0])])
                case _ if id(node) in self._placed:
                    known[id(node)] = outputs[self._placed[id(node)]].reshape(
                        node.shape, copy=False
                    )
                case _ if id(node) in self._slot_of:
                    slot = self._slots[self._slot_of[id(node)]]
                    used = slot[: node.nbytes]
                    known[id(node)] = used.view(node.dtype).reshape(node.shape, copy=False)
        return known


def _fitting(name: str, node: Expression, array: Array) -> Array:
    if array.shape != node.shape or array.dtype != node.dtype or not array.flags.c_contiguous:
        layout = "contiguous" if array.flags.c_contiguous else "non-contiguous"
        raise ShapeError(
            f"bind: {name!r} is {layout} {array.dtype}{list(array.shape)}; "
            f"expected contiguous {node.dtype}{list(node.shape)}"
        )
    return array


def _require_apart(places: Sequence[Array], given: Sequence[Array]) -> None:
    """Raise ``GraphError`` if an output array is read-only or shares memory with another array."""
    for i, place in enumerate(places):
        if not place.flags.writeable:
            raise GraphError("bind: the array of an output is read-only; expected a writeable one")
        # For contiguous arrays, comparing bounds is exact.
        if any(np.may_share_memory(place, other) for other in (*places[:i], *given)):
            raise GraphError(
                f"bind: the array of an output, {place.dtype}{list(place.shape)}, shares memory "
                f"with another output or an input; expected a separate array"
            )


def compile(
    outputs: Sequence[Expression], pool: ThreadPool | None = None, arena: Arena | None = None
) -> Plan:
    """Return the plan that computes ``outputs``: each node once, in buffers that are reused early.

    ``pool``, borrowed, shares the work of large steps; without a pool, the caller's thread does all
    the work. With a pool, limit BLAS to one thread: its threads would compete with the pool's. Runs
    with equal numbers of threads are bit-identical. ``arena``, borrowed, holds the buffers: plans
    with a common arena share them, so only one of these plans may run at a time.

    Raise ``GraphError`` if two variables share a name but not their shape and dtype.
    """
    return Plan(outputs, pool or ThreadPool(), arena or Arena())


def evaluate(outputs: Sequence[Expression], /, **arrays: Array) -> list[Array]:
    """Compile a plan, run it once and return the values of ``outputs`` in new arrays."""
    contiguous = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    return list(compile(outputs).bind(contiguous).run())
