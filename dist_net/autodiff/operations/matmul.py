"""Products of matrices, stacks of matrices and vectors, by NumPy's rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, cut
from dist_net.autodiff.expression import (
    FLOATS,
    Expression,
    Operand,
    SharedOperation,
    apply,
    operands,
    same_dtype,
)
from dist_net.autodiff.kernels.gemm import ROW_STEP
from dist_net.autodiff.kernels.thread_pool import SHARED_PRODUCT, ThreadPool
from dist_net.autodiff.operations.reduction import sum, sum_to_shape
from dist_net.autodiff.operations.shaping import matrix_transpose, reshape, transpose
from dist_net.errors import ShapeError

PRIVATE = 0xE000  # a character that is no letter of a user


@dataclass(frozen=True)
class MatMul(SharedOperation):
    """(..., n, k) times (..., k, m); the leading axes broadcast."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        a, b = inputs
        dtype = same_dtype("matmul", a, b, kinds=FLOATS)
        try:
            stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise misfit(a, b) from None
        return (*stack, a.shape[-2], b.shape[-1]), dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        a, b = inputs
        is_flat = a.ndim == b.ndim == 2
        is_shared = pool.threads > 1 and out.size * a.shape[-1] >= SHARED_PRODUCT
        # np.dot, which is Gemm's, copies a part of a transposed matrix.
        by_gemm = is_flat and (a.flags.c_contiguous or not is_shared)
        multiply = pool.gemm.of_matrices if by_gemm else partial(partial, np.matmul)
        if not is_shared or not (is_flat or a.shape[:-2] == b.shape[:-2]):
            return multiply(a, b, out)
        step = -(-len(out) // (2 * pool.threads))
        parts = cut(len(out), -(-step // ROW_STEP) * ROW_STEP if is_flat else step)
        calls = [multiply(a[part], b if is_flat else b[part], out[part]) for part in parts]
        return pool.call([[[call]] * pool.threads for call in calls])

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
    if right.ndim == 2 and left.ndim > 2:  # one product, not one for each matrix of the stack
        rows = reshape(left, (math.prod(left.shape[:-1]), left.shape[-1]))
        product = reshape(apply(MatMul(), rows, right), (*left.shape[:-1], right.shape[-1]))
    else:
        product = apply(MatMul(), left, right)
    *stack, height, width = product.shape
    kept = [length for length, x in ((height, a), (width, b)) if x.ndim > 1]
    return reshape(product, (*stack, *kept))


def misfit(a: Expression, b: Expression) -> ShapeError:
    return ShapeError(
        f"matmul: shapes {a.shape} and {b.shape} do not match; expected (..., n, k) and "
        f"(..., k, m) with the same k and leading axes that broadcast"
    )


def einsum(subscripts: str, *expressions: Expression) -> Expression:
    """Return the sum of products in Einstein's notation, such as ``"nqd,nkd->nqk"``.

    It is computed from left to right, as matrix products. ``...`` stands for axes that broadcast.
    Raise ``ShapeError`` unless each letter has one length; a letter may not repeat in an input.
    """
    given, arrow, output = subscripts.replace(" ", "").partition("->")
    if not arrow:
        output = "..." + "".join(sorted(c for c in {*given} - {*",."} if given.count(c) == 1))
    terms = given.split(",")
    if len(terms) == len(expressions):
        terms, output = _without_dots(terms, output, expressions)
    letters = "".join(terms)
    lengths = dict(zip(letters, [n for x in expressions for n in x.shape], strict=False))
    shapes = [tuple(lengths.get(c) for c in term) for term in terms]
    repeats = any(len({*term}) < len(term) for term in (*terms, output))
    if repeats or not {*output} <= {*letters} or shapes != [x.shape for x in expressions]:
        raise ShapeError(
            f"einsum: {subscripts!r} for shapes {', '.join(str(x.shape) for x in expressions)}; "
            f"expected a letter for each axis, with one length, once in an input"
        )
    result, term = expressions[0], terms[0]
    for i, x in enumerate(expressions[1:], 1):
        kept = output + "".join(terms[i + 1 :])
        result, term = _contracted(result, term, x, terms[i], kept)
    result, term = _summed(result, term, output)
    return transpose(result, [term.index(c) for c in output])


def _without_dots(
    terms: Sequence[str], output: str, inputs: Sequence[Expression]
) -> tuple[list[str], str]:
    """Return terms and output with letters for ``...``; an axis that broadcasts has its own."""
    spans: list[Shape] = []
    for term, x in zip(terms, inputs, strict=True):
        start, dots, end = term.partition("...")
        spans.append(x.shape[len(start) : x.ndim - len(end)][::-1] if dots else ())
    longest = [max(lengths) for lengths in zip_longest(*spans, fillvalue=1)]
    named = []
    for number, (term, span) in enumerate(zip(terms, spans, strict=True), 1):
        letters = [
            chr(PRIVATE + place + (n == 1 < longest[place]) * number * len(longest))
            for place, n in enumerate(span)
        ]
        named.append(term.replace("...", "".join(letters[::-1])))
    everywhere = "".join(chr(PRIVATE + place) for place in range(len(longest)))
    return named, output.replace("...", everywhere[::-1])


def _contracted(
    a: Expression, left: str, b: Expression, right: str, kept: str
) -> tuple[Expression, str]:
    """Return the product of two terms of ``einsum``, summed over the letters not ``kept``."""
    a, left = _summed(a, left, kept + right)
    b, right = _summed(b, right, kept + left)
    stack = "".join(c for c in left if c in right and c in kept)
    inner = "".join(c for c in left if c in right and c not in kept)
    rows = "".join(c for c in left if c not in right)
    columns = "".join(c for c in right if c not in left)
    lengths = dict(zip(left + right, a.shape + b.shape, strict=True))

    def matrices(x: Expression, term: str, first: str, second: str) -> Expression:
        ordered = transpose(x, [term.index(c) for c in stack + first + second])
        sides = [math.prod(lengths[c] for c in letters) for letters in (first, second)]
        return reshape(ordered, [*(lengths[c] for c in stack), *sides])

    product = matmul(matrices(a, left, rows, inner), matrices(b, right, inner, columns))
    term = stack + rows + columns
    return reshape(product, [lengths[c] for c in term]), term


def _summed(x: Expression, term: str, kept: str) -> tuple[Expression, str]:
    """Return the sum over the letters that are not kept, and the remaining letters."""
    summed = [i for i, c in enumerate(term) if c not in kept]
    return sum(x, summed), "".join(c for c in term if c in kept)
