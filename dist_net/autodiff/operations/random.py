"""Random numbers that each run of a plan draws from an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, integers
from dist_net.autodiff.expression import Expression, Operation, apply
from dist_net.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Uniform(Operation):
    """Numbers in [0, 1). Compared by identity: no two draws are the same computation."""

    shape: Shape
    generator: np.random.Generator

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.shape, np.dtype(np.float32)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(self.generator.random, None, np.float32, out)


def uniform(shape: Sequence[int], generator: np.random.Generator) -> Expression:
    """Return float32 numbers in [0, 1), drawn anew at each run."""
    lengths = integers("uniform: shape", shape)
    if any(length < 0 for length in lengths):
        raise ShapeError(f"uniform: shape {lengths} has a negative length")
    return apply(Uniform(lengths, generator))
