"""Elementwise chains on large arrays are fused into strips, which changes no value."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.compiler import steps
from dist_net.autodiff.kernels.convolution import problem, training
from dist_net.autodiff.kernels.thread_pool import ThreadPool


def draw(*shape):
    return np.random.default_rng([5, *shape]).standard_normal(shape)


def variable(name, *shape):
    return ad.variable(name, shape, np.float64)


def kernels_with(monkeypatch, strip_bytes, outputs, arrays):
    monkeypatch.setattr(steps, "STRIP_BYTES", strip_bytes)
    bound = ad.compile(outputs).bind(arrays)
    return len(bound), [array.copy() for array in bound.run()]


def row_and_column(x):
    return variable("row", *x.shape[1:]), variable("column", x.shape[0], *[1] * (x.ndim - 1))


def broadcasting_operands(x):
    row, column = row_and_column(x)
    return ad.exp(x * row) + column * ad.tanh(x)


def comparison_and_mask(x):
    row, column = row_and_column(x)
    return ad.where(ad.square(x) > row, ad.negative(x), 0.0) - ad.exp(-column)


def selection(x):
    row, column = row_and_column(x)
    return ad.exp(ad.where(ad.exp(x) > 1.0, ad.tanh(x + column), ad.negative(row * x)))


def casts(x):
    _, column = row_and_column(x)
    return ad.astype(ad.astype(ad.exp(x), np.float32) * 2.0, np.float64) * (x - column)


def small_results(x):
    row, _ = row_and_column(x)
    return ad.where(ad.square(x) > ad.exp(row), ad.constant(3, np.uint8), 0) + 1


def repeated_operands(x):
    _, column = row_and_column(x)
    return ad.exp(ad.broadcast_to(ad.tanh(column), x.shape) + x) * 2.0


def transposed_operands(x):
    return ad.square(ad.exp(ad.transpose(x)) - ad.tanh(x))


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("shape", [(1, 16), (4, 16), (17, 17), (31, 2, 3), (300,)], ids=str)
@pytest.mark.parametrize(
    "build",
    [
        broadcasting_operands,
        comparison_and_mask,
        selection,
        casts,
        small_results,
        repeated_operands,
        transposed_operands,
    ],
)
def test_fused_strips_give_what_whole_arrays_give(build, shape, differentiated, monkeypatch):
    if build is transposed_operands:
        # A row of 130 is longer than the longest strips, as one of 300 is.
        rows = min(shape[0], 130)
        shape = (rows, *shape[1:-1], rows)
    x = variable("x", *shape)
    inputs = [x, *row_and_column(x)]
    arrays = {node.operation.name: draw(*node.shape) + 0.1 for node in inputs}
    outputs = [build(x)]
    if differentiated:
        outputs = ad.gradients(ad.sum(ad.astype(outputs[0], np.float64)), inputs)
    whole, expected = kernels_with(monkeypatch, 1 << 30, outputs, arrays)
    for strip_bytes in (1, 128, 1000):
        kernels, values = kernels_with(monkeypatch, strip_bytes, outputs, arrays)
        assert kernels > whole or strip_bytes > 1 or shape[0] == 1 or differentiated
        for value, wanted in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-13, atol=1e-13, strict=True)


@pytest.mark.parametrize("last", [np.add, np.greater])
def test_a_large_elementwise_chain_is_cut_into_strips_with_a_ragged_last_one(last):
    """However small the elements of its result are."""
    x = ad.variable("x", (1001, 1000))
    ours = {np.add: ad.add, np.greater: ad.greater}[last]
    bound = ad.compile([ours(ad.exp(x * 2.0), 1.0)]).bind({"x": np.ones((1001, 1000), np.float32)})
    strips = -(-1001 // (steps.STRIP_BYTES // 4000))
    assert len(bound) == 3 * strips > 3
    np.testing.assert_allclose(bound.run()[0], last(np.exp(2), 1), rtol=1e-6)


def test_strips_are_written_over_an_input_that_is_not_needed_any_more(monkeypatch):
    monkeypatch.setattr(steps, "STRIP_BYTES", 64)
    x = variable("x", 50, 8)
    product = x @ variable("square", 8, 8)
    output = ad.sum(ad.exp(ad.tanh(product * 2.0)), 0) + ad.constant(np.zeros(8))
    plan = ad.compile([output])
    assert plan.buffer_bytes < 1.5 * 50 * 8 * 8
    (value,) = plan.bind({"x": draw(50, 8), "square": draw(8, 8)}).run()
    np.testing.assert_allclose(value, np.exp(np.tanh(draw(50, 8) @ draw(8, 8) * 2)).sum(0))


def activated(x, filters, groups):
    return ad.clip(ad.conv2d(x, filters, groups=groups) + variable("bias", 8), -0.5, 0.5)


def compared(x, filters, groups):
    """The convolution's value is larger than that of the last node, and of another type."""
    return ad.conv2d(x, filters, groups=groups) > variable("bias", 8)


def added(x, filters, groups):
    """Two convolutions, of which one step has one; each reads what the step may not overwrite."""
    y = ad.conv2d(ad.tanh(x), filters, groups=groups)
    return ad.conv2d(y, filters, groups=groups) * y + variable("bias", 8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("build", [activated, compared, added])
def test_what_follows_a_convolution_is_computed_with_its_blocks(
    build, groups, threads, monkeypatch
):
    x, filters = variable("x", 3, 9, 7, 8), variable("filters", 3, 3, 8 // groups, 8)
    arrays = {"x": draw(3, 9, 7, 8), "filters": draw(*filters.shape), "bias": draw(8)}
    output = ad.astype(build(x, filters, groups), np.float64)
    outputs = (
        [output] if build is compared else [output, *ad.gradients(ad.sum(output), [x, filters])]
    )
    whole = ad.evaluate(outputs, **arrays)
    for limits in (
        (steps, "STRIP_BYTES", 8),
        (training, "STRIP_BYTES", 1),
        (training, "MIN_PIXELS", 14),
    ):
        monkeypatch.setattr(*limits)
    monkeypatch.setattr(problem, "PRODUCTS", 2000)
    plan = ad.compile(outputs, ThreadPool(threads))
    fused = [
        each
        for each in plan._steps
        if len(each.nodes) > 1 and "Conv" in each.nodes[0].operation.label
    ]
    assert bool(fused) == (build is not compared)
    bound = plan.bind(arrays)
    for _ in range(3):
        for value, wanted in zip(bound.run(), whole, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12, strict=True)


def test_a_value_with_two_users_is_not_drawn_into_either():
    x = ad.variable("x", (1000, 1000))
    y = ad.exp(x)
    bound = ad.compile([y + 1.0, y * 2.0]).bind({"x": np.zeros((1000, 1000), np.float32)})
    assert len(bound) == 3
    first, second = bound.run()
    assert (first == 2).all()
    assert (second == 2).all()


def test_a_fused_chain_of_four_thousand_nodes(monkeypatch):
    monkeypatch.setattr(steps, "STRIP_BYTES", 8)
    x = variable("x", 7)
    y = x
    for _ in range(2_000):
        y = ad.negative(ad.tanh(y))
    (value,) = ad.evaluate([y], x=draw(7))
    expected = draw(7)
    for _ in range(2_000):
        expected = -np.tanh(expected)
    np.testing.assert_allclose(value, expected)
