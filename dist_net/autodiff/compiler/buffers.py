"""The engine, 5 of 6: buffers, assigned to results by one scan over their lifetimes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dist_net.autodiff.compiler.steps import Step, unreshaped, viewed
from dist_net.autodiff.expression import Expression


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
