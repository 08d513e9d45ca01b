"""The engine, 4 of 5: steps, the nodes that a plan computes in order, and their buffers.

A *step* is a node that is computed into a buffer. A large node joins the step of its user if it has
a single user, which is elementwise, and is elementwise itself or the step's first convolution. Such
a step is computed strip by strip, so that intermediate values stay in the cache. One scan over the
results' lifetimes assigns buffers.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, cut
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
from dist_net.autodiff.kernels.windows import Windows
from dist_net.autodiff.operations.convolution import (
    BlockwiseConvolution,
    Conv2D,
    Conv2DInputGradient,
)
from dist_net.autodiff.operations.elementwise import Elementwise
from dist_net.autodiff.operations.shaping import Reshape

STRIP_BYTES = 1 << 16
"""The output of one node of a fused step per strip: at most a quarter of a typical L2 cache."""

Strip = tuple[slice, ...]  # ranges of the first axes


@dataclass(frozen=True)
class Copy(Operation):
    """Copies the input to a contiguous buffer of its own."""

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.copyto, out, inputs[0])


@dataclass(frozen=True)
class Step:
    """Nodes computed together, in order; only the last node's value is visible outside.

    The first may be a convolution; the others are elementwise.
    """

    nodes: tuple[Expression, ...]

    @property
    def output(self) -> Expression:
        """The node that the step stores."""
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
        elif isinstance(self.nodes[0].operation, BlockwiseConvolution):
            return self._bind_blocks(self.nodes[0].operation, inputs, out, pool)
        is_shared = pool.shares(out.nbytes)
        widest = max(node.nbytes for node in self.nodes)
        shape, strips = _strips(out.shape, widest, SHARED_STRIP_BYTES if is_shared else STRIP_BYTES)
        scratch = [self._scratch(shape) for _ in range(pool.threads if is_shared else 1)]
        tasks = [
            [self._strip_calls(inputs, out, strip, each) for each in scratch] for strip in strips
        ]
        return pool.calls(tasks) if is_shared else [call for (calls,) in tasks for call in calls]

    def _bind_blocks(
        self, operation: BlockwiseConvolution, inputs: Sequence[Array], out: Array, pool: ThreadPool
    ) -> list[Call]:
        """Return the calls that fill each block of ``out`` and continue with it in the cache."""
        count = len(self.nodes[0].inputs)
        before, blocks, tasks = operation.tasks(inputs[:count], out, pool)
        images, rows = (max(each.size[axis] for each in blocks) for axis in (0, 1))
        scratch = [self._scratch((images, rows, *out.shape[2:])) for _ in range(pool.threads)]
        continued = []
        for block, task in zip(blocks, tasks, strict=True):
            strip = block.images, block.rows
            then = [self._strip_calls(inputs[count:], out, strip, each) for each in scratch]
            continued.append([[*first, *rest] for first, rest in zip(task, then, strict=True)])
        return [*before, *pool.calls(continued)]

    def _strip_calls(
        self, inputs: Sequence[Array], out: Array, strip: Strip, scratch: dict[int, Array]
    ) -> list[Call]:
        """Return the calls that compute a strip. A convolution has already written ``out``."""
        outside = iter(inputs)
        start = tuple(slice(each.stop - each.start) for each in strip)
        own = {
            id(node): scratch[id(node)][start] if id(node) in scratch else out[strip]
            for node in self.nodes
        }
        calls = []
        for node in self.nodes:
            if isinstance(node.operation, Elementwise):
                operands = [
                    own[id(each)] if id(each) in own else _part(next(outside), node, strip)
                    for each in node.inputs
                ]
                calls.append(node.operation.bind(operands, own[id(node)]))
        return calls

    def _scratch(self, shape: Shape) -> dict[int, Array]:
        """Return a strip for each elementwise node but the last."""
        return {
            id(node): np.empty(shape, node.dtype)
            for node in self.nodes[:-1]
            if isinstance(node.operation, Elementwise)
        }


def _strips(shape: Shape, nbytes: int, strip_bytes: int) -> tuple[Shape, list[Strip]]:
    """Return the strips, rows of the first axis or parts of one, and the shape of the largest."""
    rows = strip_bytes * shape[0] // nbytes
    if rows or len(shape) == 1:
        return (max(1, rows), *shape[1:]), [(each,) for each in cut(shape[0], max(1, rows))]
    inner = max(1, strip_bytes * shape[0] * shape[1] // nbytes)
    pairs = product(cut(shape[0], 1), cut(shape[1], inner))
    return (1, inner, *shape[2:]), [*pairs]


def _part(array: Array, node: Expression, strip: Strip) -> Array:
    """Return the part of an operand that a strip of ``node`` reads; broadcast axes stay whole."""
    aligned = zip(strip[node.ndim - array.ndim :], array.shape, strict=False)
    index = tuple(part if length > 1 else slice(None) for part, length in aligned)
    return array[index] if index else array


def materialise(outputs: Sequence[Expression]) -> list[Expression]:
    """Return the graph with copies where a view is insufficient.

    Some operations read contiguous arrays only. And each output needs its own buffer: a computed
    node has one, unless another output is the same node, directly or reshaped.
    """
    materialised: dict[int, Expression] = {}
    copies: dict[int, Expression] = {}

    def contiguous(node: Expression) -> Expression:
        owner = node
        while isinstance(owner.operation, View):
            if not owner.operation.keeps_contiguous:
                return copies.setdefault(id(node), apply(Copy(), node))
            (owner,) = owner.inputs
        return node

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
    return not isinstance(node.operation, Variable | Constant | View)


def unreshaped(node: Expression) -> Expression:
    while isinstance(node.operation, Reshape):
        (node,) = node.inputs
    return node


def viewed(node: Expression) -> Expression:
    """Return the node that owns the memory of ``node``."""
    while isinstance(node.operation, View):
        (node,) = node.inputs
    return node


def steps_of(outputs: Sequence[Expression]) -> list[Step]:
    """Return the steps that compute ``outputs``, each after the steps of its inputs."""
    # The gradients of the last layer, which are the last outputs, need the fewest values, so plans
    # compute them first and reuse the memory of these values.
    order = topological_order(outputs[::-1])
    uses = Counter(id(each) for each in chain(*(node.inputs for node in order), outputs))
    user = {id(each): node for node in order for each in node.inputs}
    members: dict[int, list[Expression]] = {}
    for node in reversed(order):
        if is_computed(node):
            step = members.get(id(node), [node])
            members[id(node)] = step
            for each in node.inputs:
                if uses[id(each)] == 1 and _fuses(each, user[id(each)], step):
                    members[id(each)] = step
                    step.append(each)
    position = {
        id(node): (isinstance(node.operation, Elementwise), index)
        for index, node in enumerate(order)
    }
    return [
        Step(tuple(sorted(members[id(node)], key=lambda each: position[id(each)])))
        for node in order
        if is_computed(node) and members[id(node)][0] is node
    ]


def _fuses(node: Expression, user: Expression, step: Sequence[Expression]) -> bool:
    """Return whether ``node`` may be computed strip by strip in the ``step`` of its only user."""
    if not (isinstance(user.operation, Elementwise) and node.shape == user.shape):
        return False
    last = step[0]
    match node.operation:
        case Conv2D() | Conv2DInputGradient(windows=Windows(stride=(1, 1))):
            # Its value takes the place of the last node's.
            fits = node.dtype == last.dtype and last.operation.overwrites_inputs
            return (
                fits
                and _is_large(node)
                and all(isinstance(each.operation, Elementwise) for each in step)
            )
    return _is_cut(node)


def _is_cut(node: Expression) -> bool:
    """Return whether ``node`` can be computed strip by strip and is large enough."""
    return _is_large(node) and isinstance(node.operation, Elementwise)


def _is_large(node: Expression) -> bool:
    return node.ndim > 0 and node.nbytes >= 4 * STRIP_BYTES


def assign_slots(
    steps: Sequence[Step], placed: Collection[int]
) -> tuple[dict[int, int], list[int]]:
    """Return a slot (the number of a buffer) for each step's output, and the slots' sizes in bytes.

    ``placed`` holds the ids of outputs that already have memory. A slot is free again after the
    last step that reads it. A step overwrites an input that no later step reads, if its operation
    allows that; or it takes the smallest large enough free slot, or enlarges the largest.
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
    overwrites it; a convolution reads other strips too.
    """
    output = step.output
    is_convolution = isinstance(step.nodes[0].operation, BlockwiseConvolution)
    if is_convolution or not output.operation.overwrites_inputs:
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
