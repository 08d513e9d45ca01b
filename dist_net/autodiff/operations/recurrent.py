"""All steps of an LSTM in training: a matrix product and a compiled loop for each step.

The layer ``dist_net.nn.LSTM`` defines it with other operations, for everything else. A record of a
step, (6, N, units), holds the output, the cell, the gates admit, keep and emit, and the candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import Expression, Operation, apply
from dist_net.autodiff.kernels.convolution.training import compiled_loops
from dist_net.autodiff.operations.matmul import matmul
from dist_net.autodiff.operations.shaping import matrix_transpose, reshape
from dist_net.errors import GradientError


@dataclass(frozen=True)
class LstmRecords(Operation):
    """The record of each step, (T, 6, N, units).

    Inputs: projections with both biases, (T, N, 4 · units); recurrent kernel, (units, 4 · units).
    """

    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, kernel = inputs
        return (x.shape[0], 6, x.shape[1], kernel.shape[0]), x.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        loops = compiled_loops("recurrent_loops")
        assert loops is not None
        x, kernel = inputs
        product, units = np.empty_like(x[0]), len(kernel)
        calls: list[Call] = []
        for projected, before, record in zip(x, _records_before(out), out, strict=True):
            calls.append(partial(np.dot, before[0], kernel, product))
            arrays = [each.reshape(-1, copy=False) for each in (projected, product, before, record)]
            calls.append(partial(loops.lstm_step, *arrays, units))
        return in_order(calls)


@dataclass(frozen=True)
class LstmOutputs(Operation):
    """The outputs, (T, N, units). Inputs: the records, and the inputs of ``LstmRecords``."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        steps, _, count, units = inputs[0].shape
        return (steps, count, units), inputs[0].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.copyto, out, inputs[0][:, 0])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        records, _, kernel = node.inputs
        of_inputs = apply(LstmGradient(), records, kernel, cotangent)
        before = reshape(node[:-1], (-1, node.shape[2]))
        of_products = reshape(of_inputs[1:], (-1, kernel.shape[1]))
        return None, of_inputs, matmul(matrix_transpose(before), of_products)


@dataclass(frozen=True)
class LstmGradient(Operation):
    """The cotangent of the projections. Inputs: records, kernel, and the outputs' cotangent."""

    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        records, kernel, _ = inputs
        return (records.shape[0], records.shape[2], kernel.shape[1]), records.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        loops = compiled_loops("recurrent_loops")
        assert loops is not None
        records, kernel, cotangent = inputs
        turned = np.empty_like(kernel.T, order="C")
        of_product, of_cells = np.empty_like(cotangent[0]), np.empty_like(cotangent[0])
        calls: list[Call] = [partial(np.copyto, turned, kernel.T)]
        calls += [partial(each.fill, 0) for each in (of_product, of_cells)]
        steps = [*zip(records, _records_before(records), cotangent, out, strict=True)]
        for record, before, later, gradient in steps[::-1]:
            arrays = record, before, later, of_product, of_cells, gradient
            *step, later, product, cells, target = (each.reshape(-1, copy=False) for each in arrays)
            cotangents = later, product, cells, target
            calls.append(partial(loops.lstm_step_back, tuple(step), *cotangents, len(kernel)))
            calls.append(partial(np.dot, gradient, turned, of_product))
        return in_order(calls)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        raise GradientError(
            "the gradients of a compiled LSTM have no gradients; build the network with a "
            "Scope(training=False), which computes its steps one by one"
        )


def _records_before(records: Array) -> list[Array]:
    """Return the record of the step before each; before the first it is 0."""
    return [np.zeros_like(records[0]), *records[:-1]]


def lstm_outputs(projected: Expression, kernel: Expression) -> Expression | None:
    """Return all outputs (T, N, units), given projections with both biases; None without loops."""
    loops = compiled_loops("recurrent_loops") if projected.dtype == np.float32 else None
    if loops is None or kernel.shape[0] % loops.LANES:
        return None
    return apply(LstmOutputs(), apply(LstmRecords(), projected, kernel), projected, kernel)
