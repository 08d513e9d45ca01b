"""Gradient checking: compare the VJPs of a graph with numerical slopes."""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.compiler.plan import compile, evaluate
from dist_net.autodiff.expression import Expression, variable
from dist_net.autodiff.gradients import gradients
from dist_net.autodiff.operations.elementwise import add
from dist_net.autodiff.operations.reduction import sum
from dist_net.errors import DTypeError, GradientError

Point = Sequence[NDArray[np.float64]]

STEP = 1e-5
"""About the cube root of the float64 precision, which makes central differences most accurate."""


def check_gradients(
    build: Callable[..., Expression],
    *at: NDArray[np.float64],
    rng: np.random.Generator,
    orders: int = 2,
    tolerance: float = 1e-6,
) -> None:
    """Compare the derivatives of ``build`` with finite differences, up to ``orders``.

    ``build`` makes a float64 expression of any shape from one variable per array of ``at``, whose
    values must not be near kinks such as that of relu at 0. For each array in turn, this compares
    the slopes of a random combination of the results along a random direction; a wrong VJP passes
    with probability 0. The sum of the slopes is itself a function of ``at``, and its slopes are the
    next order. Raise ``GradientError`` if two slopes differ by more than ``tolerance``, absolute
    below 1 and relative above; ``DTypeError`` unless everything is float64.
    """
    inputs = [variable(f"input_{i}", array.shape, array.dtype) for i, array in enumerate(at)]
    result = build(*inputs)
    for each in (*inputs, result):
        if each.dtype != np.float64:
            raise DTypeError(f"check_gradients: expected float64 everywhere, got {each}")
    function = sum(result * rng.standard_normal(result.shape))
    for order in range(1, orders + 1):
        directions = [rng.standard_normal(array.shape) for array in at]
        pairs = zip(gradients(function, inputs), directions, strict=True)
        slopes = [sum(gradient * direction) for gradient, direction in pairs]
        named = {f"input_{i}": array for i, array in enumerate(at)}
        claimed = evaluate(slopes, **named)
        measured = _central_differences(function, at, directions)
        for i, pair in enumerate(zip(claimed, measured, strict=True)):
            if not np.isclose(*pair, rtol=tolerance, atol=tolerance):
                raise GradientError(
                    f"derivative {order} along input {i}, {inputs[i]}: {pair[0]} by the VJPs, "
                    f"{pair[1]} by differences; correct the VJP of an operation in this expression"
                )
        function = reduce(add, slopes)


def _central_differences(function: Expression, at: Point, directions: Point) -> list[float]:
    """Return the slope of a scalar function along each input's direction, with the others fixed."""
    moved = [np.array(array, order="C") for array in at]
    plan = compile([function]).bind({f"input_{i}": array for i, array in enumerate(moved)})

    def value_at(i: int, distance: float) -> float:
        moved[i][...] = at[i] + distance * directions[i]
        value = float(plan.run()[0])
        moved[i][...] = at[i]
        return value

    return [(value_at(i, STEP) - value_at(i, -STEP)) / (2 * STEP) for i in range(len(at))]
