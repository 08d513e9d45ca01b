"""Plans: deep graphs, buffers reused and never confused, arrays borrowed."""

import functools

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.errors import GraphError, ShapeError
from naming import naming


def draw(*shape):
    return np.random.default_rng([5, *shape]).standard_normal(shape)


def variable(name, *shape):
    return ad.variable(name, shape, np.float64)


def chain(x, functions, length):
    return functools.reduce(lambda y, i: functions[i % len(functions)](y), range(length), x)


# Depth


@pytest.mark.thorough
def test_a_chain_of_four_thousand_nodes_is_differentiated_compiled_and_run():
    x = variable("x", 3)
    y = chain(x, [ad.tanh, lambda y: y + x, ad.negative], 4_000)
    output = ad.sum(y)
    value, gradient = ad.evaluate([output, *ad.gradients(output, [x])], x=np.array([0.1, 0.2, 3]))
    expected, slope = np.array([0.1, 0.2, 3]), np.ones(3)
    for i in range(4_000):
        if i % 3 == 0:
            expected, slope = np.tanh(expected), slope / np.cosh(expected) ** 2
        elif i % 3 == 1:
            expected, slope = expected + np.array([0.1, 0.2, 3]), slope + 1
        else:
            expected, slope = -expected, -slope
    np.testing.assert_allclose(value, expected.sum())
    np.testing.assert_allclose(gradient, slope)


def test_a_chain_of_four_thousand_views():
    x = variable("x", 2, 3)
    y = chain(x, [ad.transpose, lambda y: ad.reshape(y, (2, 3))], 4_000)
    position = np.arange(6).reshape(2, 3)
    for _ in range(2_000):
        position = position.T.reshape(2, 3)
    weights = np.arange(6.0).reshape(2, 3)
    value, gradient = ad.evaluate([y, *ad.gradients(ad.sum(y * weights), [x])], x=draw(2, 3))
    np.testing.assert_array_equal(value, draw(2, 3).reshape(6)[position])
    np.testing.assert_array_equal(gradient.reshape(6)[position], weights)


# Buffers


def test_a_chain_is_computed_in_place():
    plan = ad.compile([ad.sum(chain(variable("x", 100), [ad.exp, ad.sqrt], 20))])
    assert plan.buffer_bytes == 100 * 8


def test_a_chain_that_cannot_be_computed_in_place_takes_two_buffers():
    square = variable("square", 10, 10)
    plan = ad.compile([ad.sum(chain(square, [lambda y: y @ square], 20))])
    assert plan.buffer_bytes == 2 * 10 * 10 * 8


def test_a_buffer_is_enlarged_rather_than_joined_by_another():
    x = variable("x", 10)
    grown = ad.exp(ad.reshape(ad.sum(ad.exp(x), 0, keepdims=True), (1, 1))) * variable("y", 20, 10)
    assert ad.compile([ad.sum(grown)]).buffer_bytes <= (20 * 10 + 1) * 8


def test_a_value_that_is_needed_later_is_not_overwritten():
    x = variable("x", 4)
    y = ad.exp(x)
    value, also = ad.evaluate([ad.sum(ad.square(y) + ad.tanh(y) / y), ad.sum(y)], x=draw(4))
    exponential = np.exp(draw(4))
    np.testing.assert_allclose(value, np.sum(exponential**2 + np.tanh(exponential) / exponential))
    np.testing.assert_allclose(also, exponential.sum())


def test_a_value_is_not_overwritten_by_a_step_that_reads_it_in_another_order():
    x = variable("x", 3, 3)
    y = ad.exp(x)
    exponential = np.exp(draw(3, 3))
    for expression, expected in (
        (y + ad.transpose(y), exponential + exponential.T),
        (y * ad.broadcast_to(ad.sum(y, 0), (3, 3)), exponential * exponential.sum(0)),
        (ad.transpose(y) / y, exponential.T / exponential),
        (y - ad.transpose(ad.reshape(ad.transpose(y), (3, 3))), 0 * exponential),
    ):
        (value,) = ad.evaluate([ad.sum(ad.square(expression), 1)], x=draw(3, 3))
        np.testing.assert_allclose(value, np.sum(expected**2, 1), atol=1e-12)


def test_a_reshaped_value_is_overwritten_in_its_own_order():
    y = ad.reshape(ad.exp(variable("x", 2, 3)), (6,))
    plan = ad.compile([ad.sum(ad.square(y) * 2.0)])
    assert plan.buffer_bytes == 6 * 8
    np.testing.assert_allclose(
        plan.bind({"x": draw(2, 3)}).run()[0], 2 * np.sum(np.exp(draw(2, 3)) ** 2)
    )


def test_buffers_are_aligned_to_cache_lines():
    plan = ad.compile([ad.sum(ad.exp(variable("x", 7)) @ variable("y", 7, 3))])
    assert [slot.ctypes.data % 64 for slot in plan._slots] == [0] * len(plan._slots)


# Outputs


def test_outputs_may_be_variables_views_constants_and_one_another():
    x = variable("x", 2, 3)
    y = ad.exp(x)
    outputs = [
        y,
        x,
        ad.transpose(y),
        y,
        ad.reshape(y, (6,)),
        ad.reshape(ad.transpose(y), (6,)),
        ad.broadcast_to(y, (2, 2, 3)),
        ad.constant(np.arange(3.0)),
        ad.reshape(x, (3, 2)),
        ad.stop_gradient(x),
        ad.square(y),
    ]
    array = draw(2, 3)
    bound = ad.compile(outputs).bind({"x": array})
    for factor in (1, 2):
        array[:] = factor * draw(2, 3)
        e = np.exp(array)
        expected = [
            *(e, array, e.T, e, e.reshape(6), e.T.reshape(6), np.broadcast_to(e, (2, 2, 3))),
            *(np.arange(3.0), array.reshape(3, 2), array, e**2),
        ]
        for output, wanted in zip(bound.run(), expected, strict=True):
            np.testing.assert_allclose(output, wanted, strict=True)
    for i, first in enumerate(bound.outputs):
        first.fill(7)  # writes to no other output, nor to the variable or the constant
        for other in (*bound.outputs[i + 1 :], array):
            assert not np.shares_memory(first, other)
    np.testing.assert_array_equal(bound.run()[7], np.arange(3.0))


def test_outputs_are_written_where_they_are_wanted():
    """As a training step has it: every gradient is a slice of one vector."""
    weights, bias = variable("weights", 3, 2), variable("bias", 2)
    x = variable("x", 5, 3)
    loss = ad.mean(ad.square(x @ weights + bias))
    plan = ad.compile([loss, *ad.gradients(loss, [weights, bias])])
    vector, gradient = draw(8), np.full(9, 99.0)
    arrays = {"weights": vector[:6].reshape(3, 2), "bias": vector[6:], "x": draw(5, 3)}
    bound = plan.bind(arrays, [None, gradient[:6].reshape(3, 2), gradient[6:8]])
    residual = 2 * (draw(5, 3) @ vector[:6].reshape(3, 2) + vector[6:]) / 10
    (value, by_weights, _) = bound.run()
    np.testing.assert_allclose(value, np.sum((residual * 5) ** 2) / 10)
    np.testing.assert_allclose(gradient[:6].reshape(3, 2), draw(5, 3).T @ residual)
    np.testing.assert_allclose(gradient[6:8], residual.sum(0))
    assert gradient[8] == 99
    assert np.shares_memory(by_weights, gradient)


def test_a_place_that_is_read_or_written_otherwise_is_refused():
    x, y = variable("x", 3), variable("y", 3)
    plan = ad.compile([x + y, x - y])
    memory = np.zeros(10)
    arrays = {"x": memory[:3], "y": memory[3:6]}
    for places in (
        [memory[:3], None],  # of x: the second output would read the first
        [None, memory[5:8]],  # y, in part
        [memory[6:9], memory[7:10]],  # each other
    ):
        with pytest.raises(GraphError, match=naming("float64[3]")):
            plan.bind(arrays, places)
    read_only = memory[6:9]
    read_only.flags.writeable = False
    with pytest.raises(GraphError, match=naming("read-only")):
        plan.bind(arrays, [read_only, None])
    beside = plan.bind(arrays, [memory[6:9], None])
    memory[:6] = range(6)
    np.testing.assert_array_equal(beside.run()[0], [3, 5, 7])


def test_a_run_reads_what_the_variables_hold_then():
    array = np.ones(3)
    bound = ad.compile([ad.reshape(variable("x", 3), (3, 1)) * 2.0]).bind({"x": array})
    np.testing.assert_array_equal(bound.run()[0], [[2], [2], [2]])
    array[:] = 5
    np.testing.assert_array_equal(bound.run()[0], [[10], [10], [10]])
    np.testing.assert_array_equal(array, [5, 5, 5])


def test_two_bindings_of_one_plan_take_turns():
    plan = ad.compile([ad.sum(ad.exp(variable("x", 3)))])
    first, second = plan.bind({"x": np.zeros(3)}), plan.bind({"x": np.ones(3)})
    for _ in range(2):
        assert first.run()[0] == 3
        np.testing.assert_allclose(second.run()[0], 3 * np.e)


def test_a_run_gives_inf_and_nan_without_a_warning():
    x = variable("x", 3)
    reciprocal, logarithm = ad.evaluate([1.0 / x, ad.log(x)], x=np.array([0, -1.0, 1]))
    np.testing.assert_array_equal(reciprocal, [np.inf, -1, 1])
    np.testing.assert_array_equal(logarithm, [-np.inf, np.nan, 0])


# Binding


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.ones((3, 2)), r"contiguous float64\[3, 2\]"),
        (np.ones((2, 3), np.float32), r"contiguous float32\[2, 3\]"),
        (np.ones((3, 2)).T, r"non-contiguous float64\[2, 3\]"),
    ],
)
def test_an_array_of_another_shape_dtype_or_layout_is_refused(array, told):
    plan = ad.compile([variable("x", 2, 3) + 1.0])
    expected = r"expected contiguous float64\[2, 3\]"
    with pytest.raises(ShapeError, match=f"'x'.*{told}.*{expected}"):
        plan.bind({"x": array})
    with pytest.raises(ShapeError, match=f"'output'.*{told}.*{expected}"):
        plan.bind({"x": np.ones((2, 3))}, [array])


def test_missing_arrays_and_unfit_numbers_of_places_are_refused():
    plan = ad.compile([variable("x", 2) + variable("y", 2)])
    with pytest.raises(GraphError, match=naming("'y'", "['x', 'z']")):
        plan.bind({"x": np.ones(2), "z": np.ones(2)})
    with pytest.raises(GraphError, match=naming(2, 1)):
        plan.bind({"x": np.ones(2), "y": np.ones(2)}, [None, None])


def test_a_plan_names_its_variables():
    x, y = variable("x", 2), variable("y", 3)
    variables = ad.compile([ad.sum(x) + ad.sum(y)]).variables
    assert {name: node.shape for name, node in variables.items()} == {"x": (2,), "y": (3,)}


def test_evaluate_takes_any_layout_and_any_name():
    x = ad.transpose(ad.variable("outputs", (2, 3), np.float64))
    (value,) = ad.evaluate([x], outputs=draw(3, 2).T)
    np.testing.assert_array_equal(value, draw(3, 2))


def test_a_plan_of_nothing_runs():
    assert ad.compile([]).bind({}).run() == ()


# What a plan is printed as


def test_a_printed_plan_is_a_table_of_its_steps_and_what_they_need():
    x, w = ad.variable("x", (4, 3)), ad.variable("w", (3, 2))
    hidden = ad.square(x @ w + 1)
    printed = str(ad.compile([ad.sum(hidden), ad.max(hidden, 1)]))
    assert printed.splitlines() == [
        "step  operation  shape   buffer    bytes",
        "   0  MatMul     (4, 2)  0            32",
        "   1  Add        (4, 2)  0            32",
        "   2  Square     (4, 2)  0            32",
        "   3  Max        (4, 1)  output 1     16",
        "   4  Sum        (1, 1)  output 0      4",
        "steps: 5; buffers: 1, 32 bytes; outputs: 2, 20 bytes",
    ]


def test_a_printed_plan_names_all_that_one_step_computes():
    x = ad.variable("x", (1000, 1000))
    _, step, totals = str(ad.compile([ad.exp(x * x + 1)])).splitlines()
    assert step.strip().split("  ")[1:3] == ["Multiply, Add, Exp", "(1000, 1000)"]
    assert totals == "steps: 1; buffers: 0, 0 bytes; outputs: 1, 4,000,000 bytes"


def test_gradients_of_the_last_layers_are_computed_first_and_free_their_inputs():
    x = ad.variable("x", (256, 64))
    matrices = [ad.variable(f"matrix {i}", (64, 64)) for i in range(20)]
    y = x
    for matrix in matrices:
        y = ad.tanh(y @ matrix)
    loss = ad.sum(y)
    plan = ad.compile([loss, *ad.gradients(loss, matrices)])
    # A value of each layer, for its gradient, and some of the layer in work.
    assert plan.buffer_bytes <= (len(matrices) + 5) * x.nbytes
