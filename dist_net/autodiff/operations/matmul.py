"""Products of matrices, stacks of matrices and vectors, by NumPy's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import (
    FLOATS,
    Expression,
    Operand,
    SharedOperation,
    apply,
    operands,
    same_dtype,
)
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations.reduction import sum_to_shape
from dist_net.autodiff.operations.shaping import matrix_transpose, reshape
from dist_net.errors import ShapeError


@dataclass(frozen=True)
class MatMul(SharedOperation):
    """(..., n, k) times (..., k, m); the leading axes broadcast."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        a, b = inputs
        dtype = same_dtype("matmul", a, b, kinds=FLOATS)
        try:
            stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            stack = None
        if stack is None or a.shape[-1] != b.shape[-2]:
            raise misfit(a, b)
        return (*stack, a.shape[-2], b.shape[-1]), dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        a, b = inputs
        if a.ndim == b.ndim == 2:
            return pool.gemm.of_matrices(a, b, out)
        return partial(np.matmul, a, b, out)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        a, b = node.inputs
        return (
            sum_to_shape(matmul(cotangent, matrix_transpose(b)), a.shape),
            sum_to_shape(matmul(matrix_transpose(a), cotangent), b.shape),
        )


def matmul(first: Operand, second: Operand) -> Expression:
    """Return the matrix product; a vector is a row on the left and a column on the right."""
    a, b = operands(first, second)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: shapes {a.shape} and {b.shape}; expected vectors or matrices")
    left = reshape(a, (1, *a.shape)) if a.ndim == 1 else a
    right = reshape(b, (*b.shape, 1)) if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise misfit(a, b)  # names the original shapes, also of a vector
    product = apply(MatMul(), left, right)
    shape = product.shape
    if b.ndim == 1:
        shape = shape[:-1]
    if a.ndim == 1:
        shape = (*shape[: -1 if b.ndim == 1 else -2], *([] if b.ndim == 1 else shape[-1:]))
    return reshape(product, shape)


def misfit(a: Expression, b: Expression) -> ShapeError:
    """Return the error for matrices that cannot be multiplied."""
    return ShapeError(
        f"matmul: shapes {a.shape} and {b.shape} do not match; expected (..., n, k) and "
        f"(..., k, m) with the same k and leading axes that broadcast"
    )
