"""Initializers: initial values of parameters, drawn from an explicit generator.

An initializer takes a generator and a shape and returns a float32 array. The last axis is the
output axis, the second to last the input axis, and any preceding axes are a window (HWIO).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ShapeError

Values = NDArray[np.float32]
Initializer = Callable[[np.random.Generator, tuple[int, ...]], Values]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return fan_in (inputs summed per output) and fan_out (outputs fed per input)."""
    if len(shape) < 2:
        raise ShapeError(f"a fan-based initializer needs two axes or more, got shape {shape}")
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def glorot_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Uniform within ±sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    limit = math.sqrt(6.0 / sum(fans(shape)))
    return _uniform(generator, shape, limit)


def he_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Uniform within ±sqrt(6 / fan_in), for layers before a relu (He et al. 2015)."""
    return _uniform(generator, shape, math.sqrt(6.0 / fans(shape)[0]))


def he_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Normal with standard deviation sqrt(2 / fan_in), for layers before a relu."""
    deviation = np.float32(math.sqrt(2.0 / fans(shape)[0]))
    return generator.standard_normal(shape, dtype=np.float32) * deviation


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:  # noqa: ARG001
    """All 0, usual for a bias."""
    return np.zeros(shape, np.float32)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:  # noqa: ARG001
    """All 1, usual for a scale."""
    return np.ones(shape, np.float32)


def copy_of(values: NDArray[np.floating]) -> Initializer:
    """Return an initializer that copies ``values``, for parameters that are already trained."""

    def copy(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:  # noqa: ARG001
        if values.shape != shape:
            raise ShapeError(f"copy_of: values of shape {values.shape} for a parameter of {shape}")
        return values.astype(np.float32)

    return copy


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], limit: float) -> Values:
    return (generator.random(shape, dtype=np.float32) * 2 - 1) * np.float32(limit)
