"""Convolution of maps: (N, H, W, C) by kernels (kh, kw, C / groups, O).

As in every neural net, the kernel is not turned round: mathematics calls this a correlation. The
convolution is linear in the map and in the kernel, and so are its gradients: of the three
operations here, each has the other two as its VJPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, integer
from dist_net.autodiff.expression import Expression, apply
from dist_net.autodiff.kernels.convolution.training import (
    convolve,
    input_gradient,
    kernel_gradient,
)
from dist_net.autodiff.kernels.thread_pool import Team
from dist_net.autodiff.kernels.windows import Padding, Pair, Windows, windows
from dist_net.autodiff.operations.broadcasting import same_dtype
from dist_net.autodiff.operations.threaded import SharedOperation
from dist_net.errors import DTypeError, ShapeError


@dataclass(frozen=True)
class Conv2D(SharedOperation):
    """The map that has at each pixel the products of a window with each kernel.

    Inputs: x (N, H, W, C), kernel (kh, kw, C / groups, O). With groups, the first O / groups
    outputs see the first C / groups channels, and so on.
    """

    windows: Windows
    groups: int = 1

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, kernel = inputs
        dtype = same_dtype("conv2d", x, kernel)
        if dtype.kind != "f":
            raise DTypeError(f"conv2d: expected floats, got dtype {dtype}; convert with cast()")
        images, height, width, _ = x.shape
        return (images, *self.windows.output(height, width), kernel.shape[3]), dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, team: Team) -> Call:
        x, kernel = inputs
        return convolve(self.windows, self.groups, x, kernel, out, team)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, kernel = node.inputs
        return (
            apply(Conv2DInputGradient(self.windows, self.groups, map_size(x)), cotangent, kernel),
            apply(Conv2DKernelGradient(self.windows, self.groups), x, cotangent),
        )


@dataclass(frozen=True)
class Conv2DInputGradient(SharedOperation):
    """What flows back to a map of ``map_size``. Inputs: cotangent (N, H', W', O), kernel."""

    windows: Windows
    groups: int
    map_size: Pair

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        cotangent, kernel = inputs
        images, channels = cotangent.shape[0], kernel.shape[2] * self.groups
        return (images, *self.map_size, channels), cotangent.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, team: Team) -> Call:
        cotangent, kernel = inputs
        return input_gradient(self.windows, self.groups, cotangent, kernel, out, team)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        first, kernel = node.inputs
        return (
            apply(Conv2D(self.windows, self.groups), cotangent, kernel),
            apply(Conv2DKernelGradient(self.windows, self.groups), cotangent, first),
        )


@dataclass(frozen=True)
class Conv2DKernelGradient(SharedOperation):
    """What flows back to the kernel. Inputs: x (N, H, W, C), cotangent (N, H', W', O)."""

    windows: Windows
    groups: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, cotangent = inputs
        return (*self.windows.size, x.shape[3] // self.groups, cotangent.shape[3]), x.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, team: Team) -> Call:
        x, cotangent = inputs
        return kernel_gradient(self.windows, self.groups, x, cotangent, out, team)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, first = node.inputs
        return (
            apply(Conv2DInputGradient(self.windows, self.groups, map_size(x)), first, cotangent),
            apply(Conv2D(self.windows, self.groups), x, cotangent),
        )


def conv2d(
    x: Expression,
    kernel: Expression,
    stride: int | Pair = 1,
    padding: Padding = "same",
    groups: int = 1,
) -> Expression:
    """The convolution of (N, H, W, C) by (kh, kw, C / groups, O): (N, H', W', O).

    ``padding`` as ``windows`` has it, with zeros. Raises ShapeError if the shapes do not fit or
    no window does, DTypeError unless both are of one float dtype.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ShapeError(
            f"conv2d: shapes {x.shape} and {kernel.shape}; expected a map (N, H, W, C) and a "
            f"kernel (kh, kw, C / groups, O)"
        )
    channels, filters, groups = x.shape[3], kernel.shape[3], integer("conv2d: groups", groups)
    if groups < 1 or kernel.shape[2] * groups != channels or filters % groups:
        raise ShapeError(
            f"conv2d: a map of shape {x.shape} and a kernel of shape {kernel.shape} do not fit in "
            f"{groups} groups; expected (N, H, W, C) and (kh, kw, C / groups, O), with C and O "
            f"divisible by groups"
        )
    size = kernel.shape[0], kernel.shape[1]
    seen = windows(size, stride, padding, map_size(x))
    return apply(Conv2D(seen, groups), x, kernel)


def map_size(x: Expression) -> Pair:
    """The height and width of (N, H, W, C)."""
    return x.shape[1], x.shape[2]
