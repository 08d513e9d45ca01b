"""The engine, 4 of 5: steps, the nodes that a plan computes in order, and their buffers.

A *step* is a node that is computed into a buffer. A large elementwise node joins the step of its
user if it has a single user, which is elementwise too. Such a step is computed strip by strip, so
that intermediate values stay in the cache. One scan over the results' lifetimes assigns buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from dist_net.autodiff.arrays import Array, Call
from dist_net.autodiff.expression import (
    Constant,
    Expression,
    Operation,
    SharedOperation,
    Variable,
    View,
    apply,
    topological_order,
)
from dist_net.autodiff.kernels.thread_pool import SHARED_STRIP_BYTES, ThreadPool
from dist_net.autodiff.operations.elementwise import Elementwise
from dist_net.autodiff.operations.shaping import Reshape

STRIP_BYTES = 1 << 16
"""The output of one node of a fused step per strip: at most a quarter of a typical L2 cache."""


@dataclass(frozen=True)
class Copy(Operation):
    """Copies the input to a contiguous buffer of its own."""

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.copyto, out, inputs[0])


@dataclass(frozen=True)
class Step:
    """Nodes computed together, in order; only the last node's value is visible outside."""

    nodes: tuple[Expression, ...]

    @property
    def output(self) -> Expression:
        """The node whose value the step stores."""
        return self.nodes[-1]

    @property
    def inputs(self) -> list[Expression]:
        """The nodes that the step reads and does not compute itself."""
        own = {id(node) for node in self.nodes}
        return [each for node in self.nodes for each in node.inputs if id(each) not in own]

    def bind(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> list[Call]:
        """Return the calls that read ``inputs``, ordered as ``self.inputs``, and fill ``out``."""
        if len(self.nodes) == 1:
            operation = self.output.operation
            if isinstance(operation, SharedOperation):
                return [operation.bind_shared(inputs, out, pool)]
            if not (_is_cut(self.output) and pool.shares(out.nbytes)):
                return [operation.bind(inputs, out)]
        is_shared = pool.shares(out.nbytes)
        widest = max(node.nbytes for node in self.nodes)
        rows = max(1, (SHARED_STRIP_BYTES if is_shared else STRIP_BYTES) * len(out) // widest)
        scratch = [self._scratch(rows) for _ in range(pool.threads if is_shared else 1)]
        tasks = []
        for start in range(0, len(out), rows):
            strip = slice(start, min(start + rows, len(out)))
            tasks.append([self._strip_calls(inputs, out, strip, each) for each in scratch])
        return pool.calls(tasks) if is_shared else [call for (calls,) in tasks for call in calls]

    def _strip_calls(
        self, inputs: Sequence[Array], out: Array, strip: slice, scratch: dict[int, Array]
    ) -> list[Call]:
        outside = iter(inputs)
        calls = []
        for node in self.nodes:
            operands = [
                scratch[id(each)][: strip.stop - strip.start]
                if id(each) in scratch
                else _rows(next(outside), node, strip)
                for each in node.inputs
            ]
            target = (
                out[strip] if node is self.output else scratch[id(node)][: strip.stop - strip.start]
            )
            calls.append(node.operation.bind(operands, target))
        return calls

    def _scratch(self, rows: int) -> dict[int, Array]:
        """Return a strip for each node but the last; it reuses an input's strip if allowed."""
        scratch: dict[int, Array] = {}
        for node in self.nodes[:-1]:
            reusable = [
                scratch[id(each)]
                for each in node.inputs
                if id(each) in scratch and each.dtype == node.dtype
            ]
            if reusable and node.operation.overwrites_inputs:
                scratch[id(node)] = reusable[0]
            else:
                scratch[id(node)] = np.empty((rows, *node.shape[1:]), node.dtype)
        return scratch


def _rows(array: Array, node: Expression, strip: slice) -> Array:
    """Return the rows of an operand that a strip of ``node`` reads; all if it is broadcast."""
    return array[strip] if array.ndim == node.ndim and len(array) == node.shape[0] else array


def materialise(outputs: Sequence[Expression]) -> list[Expression]:
    """Return the graph with copies where a view is insufficient.

    Some operations read contiguous arrays only. And each output needs its own buffer: a computed
    node has one, unless another output is the same node, directly or reshaped.
    """
    materialised: dict[int, Expression] = {}
    copies: dict[int, Expression] = {}

    def contiguous(node: Expression) -> Expression:
        if _is_contiguous(node):
            return node
        return copies.setdefault(id(node), apply(Copy(), node))

    for node in topological_order(outputs):
        inputs = tuple(materialised[id(each)] for each in node.inputs)
        if node.operation.reads_contiguous:
            inputs = tuple(map(contiguous, inputs))
        materialised[id(node)] = node.with_inputs(inputs)
    claimed: set[int] = set()
    result = []
    for output in outputs:
        node = materialised[id(output)]
        computed = unreshaped(node)
        if not is_computed(computed) or id(computed) in claimed:
            node = computed = apply(Copy(), node)
        claimed.add(id(computed))
        result.append(node)
    return result


def is_computed(node: Expression) -> bool:
    """Return whether the node must be computed: it is no variable, constant or view."""
    return not isinstance(node.operation, Variable | Constant | View)


def unreshaped(node: Expression) -> Expression:
    """Return the node of which ``node`` is a reshape."""
    while isinstance(node.operation, Reshape):
        (node,) = node.inputs
    return node


def viewed(node: Expression) -> Expression:
    """Return the node whose memory ``node`` uses."""
    while isinstance(node.operation, View):
        (node,) = node.inputs
    return node


def _is_contiguous(node: Expression) -> bool:
    while isinstance(node.operation, View):
        if not node.operation.keeps_contiguous:
            return False
        (node,) = node.inputs
    return True


def steps_of(outputs: Sequence[Expression]) -> list[Step]:
    """Return the steps that compute ``outputs``, each after the steps of its inputs."""
    order = topological_order(outputs)
    uses = Counter(id(each) for each in chain(*(node.inputs for node in order), outputs))
    user = {id(each): node for node in order for each in node.inputs}
    members: dict[int, list[Expression]] = {}
    for node in reversed(order):
        if is_computed(node):
            step = members.get(id(node), [node])
            members[id(node)] = step
            for each in node.inputs:
                if uses[id(each)] == 1 and _fuses(each, user[id(each)]):
                    members[id(each)] = step
                    step.append(each)
    position = {id(node): index for index, node in enumerate(order)}
    return [
        Step(tuple(sorted(members[id(node)], key=lambda each: position[id(each)])))
        for node in order
        if is_computed(node) and members[id(node)][0] is node
    ]


def _fuses(node: Expression, user: Expression) -> bool:
    """Return whether ``node`` may be computed strip by strip with its only user."""
    return _is_cut(node) and isinstance(user.operation, Elementwise) and node.shape == user.shape


def _is_cut(node: Expression) -> bool:
    """Return whether ``node`` can be computed strip by strip and is large enough."""
    is_large = node.ndim > 0 and node.nbytes >= 4 * STRIP_BYTES
    return is_large and isinstance(node.operation, Elementwise)


def assign_slots(
    steps: Sequence[Step], placed: Collection[int]
) -> tuple[dict[int, int], list[int]]:
    """Return a slot (the number of a buffer) for each step's output, and the slots' sizes in bytes.

    ``placed`` holds the ids of outputs that already have memory. A slot is free again after the
    last step that reads it. A step overwrites an input that no later step reads, if its operation
    allows that; otherwise it takes the smallest free slot that is large enough, or enlarges the
    largest free slot.
    """
    last_read = {id(viewed(each)): i for i, step in enumerate(steps) for each in step.inputs}
    slot_of: dict[int, int] = {}
    sizes: list[int] = []
    free: list[int] = []
    for i, step in enumerate(steps):
        dying = {
            slot_of[id(node)]: node
            for node in map(viewed, step.inputs)
            if id(node) in slot_of and last_read[id(node)] == i
        }
        if id(step.output) not in placed:
            slot = _overwritten(step, dying)
            if slot is None:
                slot = _free_slot(step.output.nbytes, sizes, free)
            dying.pop(slot, None)
            slot_of[id(step.output)] = slot
        free += dying
    return slot_of, sizes


def _overwritten(step: Step, dying: dict[int, Expression]) -> int | None:
    """Return the slot of an input that this step may overwrite with its output.

    The step must read it in the order of the output, so that it reads each strip before it
    overwrites it.
    """
    output = step.output
    if not output.operation.overwrites_inputs:
        return None
    for slot, node in dying.items():
        read_as = [each for each in step.inputs if viewed(each) is node]
        if all(
            (each.shape, each.dtype) == (output.shape, output.dtype) and unreshaped(each) is node
            for each in read_as
        ):
            return slot
    return None


def _free_slot(nbytes: int, sizes: list[int], free: list[int]) -> int:
    large_enough = [slot for slot in free if sizes[slot] >= nbytes]
    if large_enough:
        slot = min(large_enough, key=sizes.__getitem__)
    elif free:
        slot = max(free, key=sizes.__getitem__)
        sizes[slot] = nbytes
    else:
        sizes.append(nbytes)
        return len(sizes) - 1
    free.remove(slot)
    return slot
