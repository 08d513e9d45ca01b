"""Optimizers' loops compiled by numba: a step in one pass. Needs the extra ``fast``.

LLVM vectorises the loop over elements. No vector is both read and written, because it does not
vectorise in-place loops.
"""

from functools import cache

from numba import types

from dist_net.ground.compiling import READ, REAL, WRITTEN, Loop, jit


@cache
def compiled(loop: Loop, factors: int, vectors: int, constants: int) -> Loop:
    """Compile an optimizer's loop; ``factors``: 1, the rate, or 2, with a decay."""
    old, new = (types.Tuple([each] * vectors) for each in (READ, WRITTEN))
    rates, settings = (types.Tuple([REAL] * count) for count in (factors, constants))
    return jit(READ, READ, WRITTEN, rates, old, new, settings)(loop)
