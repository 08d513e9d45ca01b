"""Convolution of maps: (N, H, W, C) by filters (kh, kw, C / groups, O).

As usual in neural networks, the filters are not flipped (in mathematics, a correlation). The
operation is linear in the map and in the filters, and so are its gradients: the VJPs of each of the
first three operations in this module are the other two. The other operations compute a convolution
in inference, fused with its epilogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, integer
from dist_net.autodiff.expression import (
    FLOATS,
    Expression,
    Operation,
    SharedOperation,
    apply,
    same_dtype,
)
from dist_net.autodiff.kernels.convolution import training
from dist_net.autodiff.kernels.convolution.choice import Algorithm, Choice
from dist_net.autodiff.kernels.convolution.problem import Arrays, Epilogue, Problem
from dist_net.autodiff.kernels.convolution.training import BlockTasks
from dist_net.autodiff.kernels.thread_pool import SHARED_PRODUCT, ThreadPool
from dist_net.autodiff.kernels.windows import Padding, Pair, Windows, pair, windows
from dist_net.errors import ShapeError


class BlockwiseConvolution(SharedOperation):
    """A convolution that is computed block by block, so that a plan may continue with a block."""

    reads_contiguous = True

    def tasks(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> BlockTasks:
        """Return the tasks that fill ``out``."""
        raise NotImplementedError

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        return self.tasks(inputs, out, pool).call(pool)


@dataclass(frozen=True)
class Conv2D(BlockwiseConvolution):
    """The product of each window with each filter: (N, H', W', O).

    Inputs: x (N, H, W, C), filters (kh, kw, C / groups, O). With groups, the first O / groups
    outputs depend on the first C / groups channels, and so on.
    """

    windows: Windows
    groups: int = 1

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, filters = inputs
        dtype = same_dtype("conv2d", x, filters, kinds=FLOATS)
        images, height, width, _ = x.shape
        return (images, *self.windows.output(height, width), filters.shape[3]), dtype

    def tasks(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> BlockTasks:
        x, filters = inputs
        return training.convolve(self.windows, self.groups, x, filters, out, pool)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, filters = node.inputs
        return (
            apply(Conv2DInputGradient(self.windows, self.groups, map_size(x)), cotangent, filters),
            apply(Conv2DFilterGradient(self.windows, self.groups), x, cotangent),
        )


@dataclass(frozen=True)
class Conv2DInputGradient(BlockwiseConvolution):
    """The cotangent of a map of ``map_size``. Inputs: cotangent (N, H', W', O), filters."""

    windows: Windows
    groups: int
    map_size: Pair

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        cotangent, filters = inputs
        images, channels = cotangent.shape[0], filters.shape[2] * self.groups
        return (images, *self.map_size, channels), cotangent.dtype

    def tasks(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> BlockTasks:
        cotangent, filters = inputs
        return training.input_gradient(self.windows, self.groups, cotangent, filters, out, pool)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        first, filters = node.inputs
        return (
            apply(Conv2D(self.windows, self.groups), cotangent, filters),
            apply(Conv2DFilterGradient(self.windows, self.groups), cotangent, first),
        )


@dataclass(frozen=True)
class Conv2DFilterGradient(SharedOperation):
    """The cotangent of the filters. Inputs: x (N, H, W, C), cotangent (N, H', W', O)."""

    windows: Windows
    groups: int
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, cotangent = inputs
        return (*self.windows.size, x.shape[3] // self.groups, cotangent.shape[3]), x.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, cotangent = inputs
        return training.filter_gradient(self.windows, self.groups, x, cotangent, out, pool)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, first = node.inputs
        return (
            apply(Conv2DInputGradient(self.windows, self.groups, map_size(x)), first, cotangent),
            apply(Conv2D(self.windows, self.groups), x, cotangent),
        )


def conv2d(
    x: Expression,
    filters: Expression,
    stride: int | Pair = 1,
    padding: Padding = "same",
    groups: int = 1,
    dilation: int | Pair = 1,
) -> Expression:
    """Return the convolution of (N, H, W, C) by (kh, kw, C / groups, O): (N, H', W', O).

    Pads with zeros; ``padding`` is as for ``windows``. The taps of a filter are ``dilation`` pixels
    apart. Raise ``ShapeError`` if the shapes do not match, no window fits, or stride and dilation
    are both above 1 along an axis; ``DTypeError`` unless both have the same float dtype.
    """
    if x.ndim != 4 or filters.ndim != 4:
        raise ShapeError(
            f"conv2d: shapes {x.shape} and {filters.shape}; expected a map (N, H, W, C) and "
            f"filters (kh, kw, C / groups, O)"
        )
    channels, out_channels, groups = x.shape[3], filters.shape[3], integer("conv2d: groups", groups)
    if groups < 1 or filters.shape[2] * groups != channels or out_channels % groups:
        raise ShapeError(
            f"conv2d: a map of shape {x.shape} and filters of shape {filters.shape} do not match "
            f"in {groups} groups; expected (N, H, W, C) and (kh, kw, C / groups, O), with C and O "
            f"divisible by groups"
        )
    size = filters.shape[0], filters.shape[1]
    seen = windows(size, stride, padding, map_size(x), dilation)
    if any(min(both) > 1 for both in zip(seen.stride, seen.dilation, strict=True)):
        raise ShapeError(
            f"conv2d: stride {seen.stride} and dilation {seen.dilation}; expected one of them to "
            f"be 1 along each axis"
        )
    return apply(Conv2D(seen, groups), x, filters)


def conv2d_transpose(
    x: Expression, filters: Expression, stride: int | Pair = 1, padding: Padding = "same"
) -> Expression:
    """Return the transposed convolution: a map's cotangent, from ``x``, its convolution's.

    (N, H, W, C) by (kh, kw, O, C) to (N, H', W', O). H' is H · stride; with "valid", it also has
    the rows of the last windows beyond that. Raise ``ShapeError`` if the shapes or the padding do
    not fit, ``DTypeError`` unless both have the same float dtype.
    """
    if x.ndim != 4 or filters.ndim != 4 or x.shape[3] != filters.shape[3]:
        raise ShapeError(
            f"conv2d_transpose: shapes {x.shape} and {filters.shape}; expected a map (N, H, W, C) "
            f"and filters (kh, kw, O, C)"
        )
    same_dtype("conv2d_transpose", x, filters, kinds=FLOATS)
    size, strides = (filters.shape[0], filters.shape[1]), pair("stride", stride, 1)
    pairs = zip(size, strides, strict=True)
    beyond = [max(k - s, 0) if padding == "valid" else 0 for k, s in pairs]
    target = x.shape[1] * strides[0] + beyond[0], x.shape[2] * strides[1] + beyond[1]
    seen = windows(size, stride, padding, target)
    if seen.output(*target) != map_size(x):
        raise ShapeError(
            f"conv2d_transpose: {size} filters with stride {strides} and padding {padding} make "
            f"{seen.output(*target)} of {target}; expected {map_size(x)}: use 'same' or 'valid'"
        )
    return apply(Conv2DInputGradient(seen, 1, target), x, filters)


def map_size(x: Expression) -> Pair:
    return x.shape[1], x.shape[2]


@dataclass(frozen=True)
class FusedConvolution(Operation):
    """``epilogue`` of the convolution of x by filters: a description, to be planned later.

    Inputs: x (N, H, W, C), filters (kh, kw, C / groups, O), bias (O,), a residual like y or none.
    """

    windows: Windows
    groups: int = 1
    epilogue: Epilogue = field(default_factory=Epilogue)

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, filters = inputs[:2]
        images, height, width, _ = x.shape
        return (images, *self.windows.output(height, width), filters.shape[3]), x.dtype

    def problem(self, node: Expression) -> Problem:
        """Return the problem that a node of this operation describes."""
        x = node.inputs[0]
        return Problem(self.windows, self.groups, self.epilogue, x.shape, node.shape, x.dtype)


@dataclass(frozen=True)
class PreparedFilters(Operation):
    """A convolution's filters in the layout of an algorithm."""

    problem: Problem
    algorithm: Algorithm
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.algorithm.prepared_shape(self.problem), self.problem.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (filters,) = inputs
        return lambda: np.copyto(out, self.algorithm.prepare(self.problem, filters))


@dataclass(frozen=True, eq=False)
class PlannedConvolution(Operation):
    """A convolution by a chosen algorithm. Inputs: x, prepared filters, bias, maybe a residual."""

    problem: Problem
    choice: Choice
    pool: ThreadPool
    reads_contiguous = True

    @property
    def label(self) -> str:
        return f"Convolution by {self.choice.algorithm.name}"

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.problem.out, self.problem.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, prepared, bias, *residual = inputs
        arrays = Arrays(x, prepared, bias, residual[0] if residual else None, out)
        tasks = self.choice.tasks(self.problem, arrays, self.pool)
        if self.problem.multiplications >= SHARED_PRODUCT:
            return self.pool.call(tasks)
        return in_order([call for task in tasks for call in task[0]])
