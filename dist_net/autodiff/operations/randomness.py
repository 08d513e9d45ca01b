"""Random numbers, drawn anew at each run of a plan from an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.expression import Array, Expression, Kernel, Operation, Shape, apply


@dataclass(frozen=True, eq=False)
class Uniform(Operation):
    """Numbers in [0, 1). Compared by identity: two draws are never the same computation."""

    shape: Shape
    generator: np.random.Generator

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.shape, np.dtype(np.float32)

    def kernel(self, inputs: Sequence[Array], out: Array) -> Kernel:
        return partial(self.generator.random, None, np.float32, out)


def uniform(shape: Sequence[int], generator: np.random.Generator) -> Expression:
    """float32 numbers in [0, 1), other ones at each run."""
    return apply(Uniform(tuple(shape), generator))
