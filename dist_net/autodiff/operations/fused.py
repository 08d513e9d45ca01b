"""Functions of rows that compiled loops compute in one pass over memory: softmax, gelu, layer norm.

Needs the extra ``fast``. Other operations define each: plans compute the definition where the loops
do not support the arrays, and so do exported files, the naive evaluator and second gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, positive_axis
from dist_net.autodiff.expression import (
    FLOATS,
    Expression,
    SharedOperation,
    apply,
    same_dtype,
    topological_order,
)
from dist_net.autodiff.kernels.convolution.training import compiled_loops
from dist_net.autodiff.kernels.thread_pool import ThreadPool, by_strip
from dist_net.autodiff.operations.classification import shifted_to_zero
from dist_net.autodiff.operations.elementwise import divide, erf, exp, sqrt, square, tanh
from dist_net.autodiff.operations.reduction import Axis, mean, sum


@dataclass(frozen=True)
class Fused(SharedOperation):
    """A function of each row along the last axis, which the loops know by its definition's name.

    ``definition`` receives the inputs, all of one shape, and ``epsilon``. ``gradient`` defines the
    cotangent of x, given x, or the result if ``reads_result``, and the result's cotangent. It has
    no gradient itself: see ``defined``.
    """

    definition: Callable[..., Expression]
    gradient: Callable[..., Expression] | None = None
    reads_result: bool = False
    epsilon: float = 0.0
    reads_contiguous = True

    @property
    def label(self) -> str:
        return self.definition.__name__.removeprefix("_")

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, same_dtype(self.label, *inputs, kinds=FLOATS)

    def is_compiled(self, x: Expression) -> bool:
        if x.dtype != np.float32 or not x.ndim or not x.size:
            return False
        vectors = compiled_loops("vectors")
        return vectors is not None and x.shape[-1] % vectors.LANES == 0

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        loops = compiled_loops("row_loops")
        assert loops is not None
        function = [each.__name__ for each in loops.FUNCTIONS].index(self.label)
        compute = partial(loops.compute_rows, function)
        numbers = out.shape[-1], np.float32(self.epsilon)
        rows = [each.reshape(-1, numbers[0], copy=False) for each in (inputs[0], inputs[-1], out)]

        def calls(strip: slice, _: Sequence[Array]) -> Sequence[Call]:
            flat = [each[strip].reshape(-1, copy=False) for each in rows]
            return [partial(compute, *flat, *numbers)]

        return by_strip(rows[-1], 0, calls, pool)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        assert self.gradient is not None
        source = node if self.reads_result else node.inputs[0]
        return (apply(Fused(self.gradient, epsilon=self.epsilon), source, cotangent),)


def defined(
    outputs: Sequence[Expression], is_chosen: Callable[[Fused, Expression], bool] = lambda *_: True
) -> list[Expression]:
    """Return ``outputs`` with the definitions of the fused operations that are chosen.

    ``is_chosen`` receives an operation and its first input; by default, all are chosen.
    """
    new: dict[int, Expression] = {}
    for node in topological_order(outputs):
        inputs = [new[id(each)] for each in node.inputs]
        if isinstance(node.operation, Fused) and is_chosen(node.operation, inputs[0]):
            new[id(node)] = node.operation.definition(*inputs, node.operation.epsilon)
        else:
            is_same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            new[id(node)] = node if is_same else node.with_inputs(inputs)
    return [new[id(each)] for each in outputs]


def _softmax(x: Expression, _: float) -> Expression:
    exponentials = exp(shifted_to_zero(x))
    return exponentials / sum(exponentials, -1, keepdims=True)


def _softmax_gradient(y: Expression, g: Expression, _: float) -> Expression:
    return (g - sum(g * y, -1, keepdims=True)) * y


def softmax(logits: Expression) -> Expression:
    """Return probabilities along the last axis, proportional to exp(logits)."""
    positive_axis("softmax", -1, logits.shape)
    return apply(Fused(_softmax, _softmax_gradient, reads_result=True), logits)


def _normal_probability(x: Expression) -> Expression:
    return (erf(x * math.sqrt(0.5)) + 1.0) * 0.5


def _gelu(x: Expression, _: float) -> Expression:
    return x * _normal_probability(x)


def _gelu_gradient(x: Expression, g: Expression, _: float) -> Expression:
    density = exp(square(x) * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (_normal_probability(x) + x * density) * g


def gelu(x: Expression, approximate: bool = False) -> Expression:
    """Return x · Φ(x) for the normal distribution's Φ, or its approximation by tanh."""
    if approximate:
        inner = (x + 0.044715 * (square(x) * x)) * math.sqrt(2 / math.pi)
        return x * ((tanh(inner) + 1.0) * 0.5)
    return apply(Fused(_gelu, _gelu_gradient), x)


def deviations(x: Expression, epsilon: float, axes: Axis = -1) -> tuple[Expression, Expression]:
    """Return x - mean and √(variance + epsilon), with the mean and variance along ``axes``."""
    centered = x - mean(x, axes, keepdims=True)
    return centered, sqrt(mean(square(centered), axes, keepdims=True) + epsilon)


def _standardize(x: Expression, epsilon: float) -> Expression:
    return divide(*deviations(x, epsilon))


def _standardize_gradient(x: Expression, g: Expression, epsilon: float) -> Expression:
    centered, deviation = deviations(x, epsilon)
    normal = centered / deviation
    along = normal * mean(g * normal, -1, keepdims=True)
    return (g - mean(g, -1, keepdims=True) - along) / deviation


def standardize(x: Expression, epsilon: float) -> Expression:
    """Return (x - mean) / √(variance + epsilon) of each row along the last axis."""
    return apply(Fused(_standardize, _standardize_gradient, epsilon=epsilon), x)
