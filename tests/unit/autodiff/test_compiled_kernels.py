"""Compiled kernels: the plain ones' answers, within their arrays' bounds, and kept on disk."""

import importlib
import inspect
import logging
import subprocess
import sys
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff.compiler.naive import evaluate_naively
from dist_net.autodiff.kernels.convolution.choice import choose
from dist_net.autodiff.kernels.convolution.depthwise import Depthwise
from dist_net.autodiff.kernels.convolution.im2row import Im2Row
from dist_net.autodiff.kernels.convolution.problem import Arrays, Blocking, Epilogue, Problem
from dist_net.autodiff.kernels.convolution.training import filter_gradient
from dist_net.autodiff.kernels.convolution.winograd import Winograd
from dist_net.autodiff.kernels.gemm import LAYOUTS
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import Windows
from dist_net.autodiff.operations import elementwise, fused
from dist_net.autodiff.operations.elementwise import Binary, Unary
from dist_net.autodiff.operations.fused import standardize
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.data import Dataset
from dist_net.nn import (
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    Model,
    Rescale,
    Residual,
    Sequential,
    leaky_relu,
    relu,
)
from dist_net.nn.inference import Inference, prepare
from dist_net.training.worker.local_steps import Minibatch, TrainingStep

pytest.importorskip("numba", reason="numba is not installed (the extra `fast`)")

from dist_net.autodiff.kernels.compiled import depthwise_loops as compiled_depthwise
from dist_net.autodiff.kernels.compiled import direct_loops as compiled_direct
from dist_net.autodiff.kernels.compiled import epilogues, vectors
from dist_net.autodiff.kernels.compiled import recurrent_loops as compiled_recurrent
from dist_net.autodiff.kernels.compiled import row_loops as compiled_rows
from dist_net.autodiff.kernels.compiled import scaling_loops as compiled_scaling
from dist_net.autodiff.kernels.compiled import winograd_loops as compiled_winograd
from dist_net.autodiff.kernels.compiled.depthwise_loops import CompiledDepthwise
from dist_net.autodiff.kernels.compiled.direct_loops import Direct, Finish, products
from dist_net.autodiff.kernels.compiled.winograd_loops import CompiledWinograd
from dist_net.ground import compiling
from dist_net.optim import OPTIMIZERS

MODULES = epilogues, compiled_depthwise, compiled_direct, compiled_recurrent, compiled_rows
MODULES += (compiled_scaling, compiled_winograd)
UPDATE_LOOPS = [*{type(each).loop: None for each in OPTIMIZERS.values()}]
WHOLE = Blocking(images=99, rows=99, channels=999)
LOOPS = [
    compiled_depthwise.correlate,
    compiled_depthwise.add_gradient,
    compiled_direct.multiply,
    compiled_recurrent.lstm_step,
    compiled_recurrent.lstm_step_back,
    compiled_scaling.scale_and_shift,
    compiled_rows.compute_rows,
    compiled_winograd.to_points,
    compiled_winograd.from_points,
]


def problem_of(x, filters, size=3, stride=1, padding=None, groups=1, dtype=np.float32, dilation=1):
    sides = padding or ((size // 2, size // 2), (size // 2, size // 2))
    windows = Windows((size, size), (stride, stride), sides, (dilation, dilation))
    out = (x[0], *windows.output(x[1], x[2]), filters)
    return Problem(windows, groups, Epilogue(0.1, 0.0, -1.0, 60.0), x, out, np.dtype(dtype))


def arrays_of(problem, with_residual):
    random = np.random.default_rng(0)
    shape = (*problem.windows.size, problem.x[3] // problem.groups, problem.out[3])
    return Arrays(
        random.standard_normal(problem.x, np.float32).astype(problem.dtype),
        random.standard_normal(shape, np.float32).astype(problem.dtype),
        random.standard_normal(problem.out[3], np.float32).astype(problem.dtype),
        random.standard_normal(problem.out).astype(problem.dtype) if with_residual else None,
        np.full(problem.out, np.nan, problem.dtype),
    )


def computed(algorithm, problem, blocking, with_residual=False, threads=1):
    """The output, a new array, from scratch that holds NaN."""
    arrays = arrays_of(problem, with_residual)
    prepared = np.ascontiguousarray(algorithm.prepare(problem, arrays.filters))
    assert prepared.shape == algorithm.prepared_shape(problem)
    for each in (arrays.x, arrays.bias, prepared):
        each.flags.writeable = False  # as a mapped file of prepared kernels is
    bound = Arrays(arrays.x, prepared, arrays.bias, arrays.residual, arrays.out)
    blocks = list(blocking.blocks(problem.out, algorithm.row_step))
    pool = ThreadPool(threads)
    pool.reserve(max(algorithm.scratch_bytes(problem, block) for block in blocks))
    for thread in range(threads):
        pool.scratch(thread)[:] = 0xFF
    tasks = [
        [algorithm.calls(problem, block, bound, pool.scratch(i)) for i in range(threads)]
        for block in blocks
    ]
    pool.call(tasks)()
    pool.close()
    return arrays.out


def require_same(fast, plain, problem, blocking, with_residual=False, threads=1):
    out = computed(fast, problem, blocking, with_residual, threads)
    expected = computed(plain, problem, blocking, with_residual)
    assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


WINOGRAD_CASES = [
    ((3, 8, 12, 16), 24, WHOLE),
    ((2, 8, 4, 13), 9, Blocking(1, 4, 999)),
    ((2, 12, 8, 40), 44, Blocking(1, 4, 11)),  # the last split has 11, the others overlap
    ((1, 4, 4, 8), 40, Blocking(1, 4, 12)),  # the last split is narrower than a vector
    ((2, 4, 4, 3), 8, WHOLE),  # and so are the input's channels
]


def winograd_problem(x, filters, stride):
    """With an output as large as ``x`` whatever the stride."""
    images, height, width, channels = x
    return problem_of((images, stride * height, stride * width, channels), filters, stride=stride)


DIRECT_CASES = [
    ((2, 7, 9, 3), 16, {}),
    ((2, 7, 9, 4), 17, {"stride": 2}),
    ((1, 8, 8, 6), 12, {"size": 1}),
    ((9, 1, 1, 6), 75, {"size": 1}),
    ((1, 1, 1, 6), 136, {"size": 1}),
    ((1, 9, 8, 6), 12, {"size": 1, "stride": 2}),
    ((1, 9, 8, 16), 24, {"size": 1, "stride": 2}),
    ((2, 6, 6, 8), 32, {"groups": 4}),
    ((2, 9, 11, 4), 40, {"dilation": 2}),
    ((1, 5, 6, 3), 8, {"padding": ((0, 2), (1, 0))}),
    ((1, 2, 2, 3), 8, {"padding": ((4, 4), (4, 4))}),
    ((1, 2, 2, 1), 8, {"padding": ((4, 4), (4, 4))}),
    ((2, 9, 3, 16), 48, {"stride": 2}),
    ((1, 6, 6, 3), 8, {"padding": ((0, 0), (0, 0)), "size": 6}),
]


DEPTHWISE_CASES = [
    ((2, 9, 8, 16), {}),
    ((3, 7, 7, 44), {"size": 5}),  # the last vector overlaps the one before it
    ((2, 9, 12, 8), {"stride": 2}),
    ((1, 8, 9, 24), {"size": 5, "stride": 2}),
    ((2, 11, 14, 9), {"stride": 3}),
    ((1, 7, 6, 8), {"size": 2, "stride": 3, "padding": ((0, 1), (1, 0))}),
    ((1, 12, 11, 12), {"stride": 2, "padding": ((0, 1), (0, 1))}),
    ((1, 2, 3, 10), {"padding": ((4, 4), (4, 4))}),
    ((1, 6, 6, 9), {"padding": ((0, 0), (0, 0)), "size": 6}),
    ((1, 5, 13, 17), {"size": 1}),
]


@pytest.mark.parametrize("blocking", [WHOLE, Blocking(1, 2, 999)])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("x", "options"), DEPTHWISE_CASES)
def test_depthwise_gives_the_plain_answers(x, options, with_residual, blocking):
    problem = problem_of(x, x[3], groups=x[3], **options)
    require_same(CompiledDepthwise(), Depthwise(), problem, blocking, with_residual, threads=2)


@pytest.mark.parametrize(
    ("channels", "dtype", "chosen"),
    [(8, np.float32, True), (7, np.float32, False), (8, np.float64, False)],
)
def test_depthwise_is_compiled_where_vectors_fit(channels, dtype, chosen):
    problem = problem_of((1, 6, 6, channels), channels, groups=channels, dtype=dtype)
    assert isinstance(choose(problem, 1, compiled=True).algorithm, CompiledDepthwise) == chosen


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("x", "filters", "blocking"), WINOGRAD_CASES)
@pytest.mark.parametrize(("m", "stride"), [(2, 1), (4, 1), (2, 2)])
def test_winograd_gives_the_plain_answers(m, stride, x, filters, blocking, with_residual, threads):
    problem = winograd_problem(x, filters, stride)
    fast, plain = CompiledWinograd(m, stride), Winograd(m, stride)
    require_same(fast, plain, problem, blocking, with_residual, threads)


@pytest.mark.parametrize("blocking", [WHOLE, Blocking(1, 2, 999), Blocking(1, 5, 9)])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("x", "filters", "options"), DIRECT_CASES)
def test_direct_gives_the_plain_answers(x, filters, options, with_residual, blocking):
    if "groups" in options and blocking.channels < filters:
        pytest.skip("groups are not split")
    problem = problem_of(x, filters, **options)
    for gemm in LAYOUTS if blocking.channels > filters else LAYOUTS[:1]:
        require_same(Direct(gemm), Im2Row(), problem, blocking, with_residual, threads=2)


@given(
    st.tuples(*[st.integers(1, n) for n in (3, 21, 21, 40)]),
    st.integers(1, 80),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_chosen_gives_the_plain_answers(
    x, filters, size, stride, with_residual, reproducible, threads
):
    problem = problem_of((x[0], max(x[1], size), max(x[2], size), x[3]), filters, size, stride)
    plain = choose(problem, threads, reproducible)
    fast = choose(problem, threads, reproducible, compiled=True)
    few = Direct if filters >= vectors.LANES else Im2Row
    assert type(fast.algorithm) in (few, CompiledWinograd)
    require_same(fast.algorithm, plain.algorithm, problem, fast.blocking, with_residual, threads)


def test_other_numbers_than_float32_keep_the_plain_algorithm():
    problem = problem_of((1, 8, 8, 16), 16, dtype=np.float64)
    assert type(choose(problem, 1, compiled=True).algorithm) is Winograd


def with_gradients(function, shape):
    """A function of a variable x, its gradient, and the gradient of that."""
    random = np.random.default_rng(1)
    outputs = [function(x := ad.variable("x", shape))]
    for _ in range(2):
        weights = ad.constant(random.standard_normal(shape, np.float32))
        outputs += ad.gradients(ad.sum(outputs[-1] * weights), [x])
    return outputs


def require_definitions(x):
    for function in (ad.softmax, ad.gelu, lambda x: standardize(x, 1e-3)):
        outputs = with_gradients(function, x.shape)
        answers = []
        for threads in (1, 2):
            pool = ThreadPool(threads)
            answers.append([*ad.compile(outputs, pool).bind({"x": x}).run()])
            pool.close()
        assert [each.tobytes() for each in answers[0]] == [each.tobytes() for each in answers[1]]
        for found, wanted in zip(answers[0], evaluate_naively(outputs, x=x), strict=True):
            np.testing.assert_allclose(found, wanted, 0, 1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(8,), (3, 40), (2, 3, 16), (40, 100, 128)])
def test_functions_of_rows_are_those_they_are_defined_by(shape):
    random = np.random.default_rng(0)
    require_definitions((random.standard_normal(shape) * 2 + 1).astype(np.float32))


LARGEST = np.finfo(np.float32).max
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 20, -20, 87.5, -87.5, 89, -89, 1e4, -1e4, 6]
SPECIAL += [1e30, -1e30, LARGEST, -LARGEST, np.inf, -np.inf, np.nan, 0.5, -0.5]
FUNCTIONS = {
    **{repr(each): each for each in vars(elementwise).values() if isinstance(each, Unary | Binary)},
    **nn.layers.ACTIVATIONS,
    "gelu by tanh": lambda x: ad.gelu(x, approximate=True),
    "standardize": lambda x: standardize(x, 1e-3),
    "std": lambda x: ad.std(x, 1, keepdims=True),
    "log_softmax": ad.log_softmax,
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("Logical")])
def test_special_numbers_have_one_value_and_gradient(name, dtype, monkeypatch):
    """Computed naively, by a plan, and by compiled loops: each in a row, or beside each other."""
    function, special = FUNCTIONS[name], np.array(SPECIAL, dtype)
    if isinstance(function, Binary):
        pairs = np.broadcast_arrays(special, special[:, None])
        arrays = dict(zip("xy", map(np.ascontiguousarray, pairs), strict=True))
    else:
        arrays = {"x": np.full((len(special), 8), 0.5, dtype)}
        arrays["x"][:, 3] = special
    variables = [ad.variable(each, array.shape, dtype) for each, array in arrays.items()]
    outputs = [function(*variables)]
    if outputs[0].dtype == dtype:
        outputs += ad.gradients(ad.sum(outputs[0]), variables)
    with np.errstate(all="ignore"):
        expected = evaluate_naively(outputs, **arrays)
    for has_loops in (True, False):
        if not has_loops:
            monkeypatch.setattr(fused, "compiled_loops", lambda _: None)
        for found, wanted in zip(ad.evaluate(outputs, **arrays), expected, strict=True):
            np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)


@pytest.mark.parametrize("low", [-np.inf, 0.0])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("slopes", [(1.0, 1.0), (0.0, 1.0), (0.1, 0.0), (1.0, 0.1)])
def test_special_numbers_have_one_epilogue(slopes, has_residual, low):
    values = np.array(SPECIAL, np.float32)
    epilogue = Epilogue(*slopes, low, 6.0 if low == 0 else np.inf)
    out, wanted, spare = np.empty((3, len(values)), np.float32)
    residual = values[::-1].copy() if has_residual else None
    with np.errstate(all="ignore"):
        for call in epilogue.calls(values.copy(), None, residual, wanted, spare):
            call()
    one = np.ones((1,) * 7, np.float32)
    values, out, residual = (
        None if each is None else each.reshape(1, 1, 1, 1, -1) for each in (values, out, residual)
    )
    products(one, values, out, Finish(residual=residual, epilogue=epilogue))()
    np.testing.assert_array_equal(out.reshape(-1), wanted)


def test_a_transformer_has_the_gradient_of_its_definition(monkeypatch):
    attention = nn.Residual(nn.LayerNorm(), nn.MultiHeadAttention(4, causal=True))
    dense = nn.Residual(nn.LayerNorm(), nn.Dense(256, "gelu"), nn.Dense(64))
    model = nn.Model(
        nn.Sequential(nn.Embedding(9, 64), attention, dense, nn.Dense(9)), (64,), input_dtype="i8"
    )
    words = np.random.default_rng(0).integers(0, 9, (16, 64))
    dataset = Dataset("words", words, words, words, words, tuple("abcdefghi"))
    weights = model.layout.initial(np.random.default_rng(1))
    gradients = []
    for threads, loops in ((1, True), (2, True), (1, False)):
        if not loops:
            monkeypatch.setattr(fused, "compiled_loops", lambda _: None)
        step = TrainingStep(model, dataset, 0, threads)
        gradients.append(step(weights, Minibatch(0, 0, 16)).gradient.copy())
    for each in gradients[:2]:
        assert np.abs(each - gradients[2]).max() <= 1e-5 * np.abs(gradients[2]).max()


# Bounds. Vectors are loaded and stored unchecked, so the same loops run in plain Python, where
# they are slices of arrays that have to be there.


def checked_load(source, index, lanes=vectors.LANES):
    assert 0 <= index <= len(source) - lanes
    return source[index : index + lanes].copy()


def checked_store(target, index, value):
    assert 0 <= index <= len(target) - len(value)
    target[index : index + len(value)] = value


def repeated(count, step, *state, by=1):
    for i in range(0, count, by):
        state = step(i, *state) or ()
    return state


IN_PYTHON = {
    "pointer": lambda array: array,
    "load": checked_load,
    "store": checked_store,
    "value_at": lambda source, index: source[index],
    "spread": lambda value, lanes=vectors.LANES: np.full(lanes, value, np.float32),
    "zeros": lambda _, lanes: np.zeros(lanes, np.float32),
    "larger": np.maximum,
    "smaller": np.minimum,
    "multiply_add": lambda a, b, c: a * b + c,
    "square_root": np.sqrt,
    "power_of_two": np.exp2,
    "across": lambda a, combine: np.full_like(a, reduce(combine, a)),
    "repeated": repeated,
    "run_chosen": lambda number, functions: functions[number](),
    "changed_if": lambda condition, change, value: change(value) if condition else value,
}


class Checked(np.ndarray):
    """An array whose single elements cannot be counted from its end either."""

    def __getitem__(self, index):
        assert not isinstance(index, int) or index >= 0
        return super().__getitem__(index)

    def __setitem__(self, index, value):
        assert not isinstance(index, int) or index >= 0
        super().__setitem__(index, value)


@pytest.fixture
def loops_in_python(monkeypatch):
    """Every compiled function as it is written, on arrays that notice what is out of bounds."""
    called = []

    def interpreted(function, name):
        def run(*arguments):
            called.append(name)
            return function(*checked(arguments))

        return run

    def checked(values):
        kinds = {tuple: checked, np.ndarray: lambda each: each.view(Checked)}
        return tuple(kinds.get(type(each), lambda each: each)(each) for each in values)

    for module in MODULES:
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func"):
                is_loop = value in LOOPS
                function = interpreted(value.py_func, name) if is_loop else value.py_func
                monkeypatch.setattr(module, name, function)
            elif name in IN_PYTHON:
                monkeypatch.setattr(module, name, IN_PYTHON[name])
    return called


def test_no_loop_of_winograd_leaves_its_arrays(loops_in_python):
    for m, stride in ((2, 1), (4, 1), (2, 2)):
        for x, filters, blocking in WINOGRAD_CASES:
            problem = winograd_problem(x, filters, stride)
            fast, plain = CompiledWinograd(m, stride), Winograd(m, stride)
            require_same(fast, plain, problem, blocking, True)
    assert {"to_points", "from_points"} <= {*loops_in_python}


def test_no_direct_convolution_leaves_its_arrays(loops_in_python):
    for x, filters, options in DIRECT_CASES:
        for blocking in (WHOLE, Blocking(1, 2, 999)):
            problem = problem_of(x, filters, **options)
            require_same(Direct(), Im2Row(), problem, blocking, True)
    assert "multiply" in loops_in_python


def test_no_loop_of_depthwise_leaves_its_arrays(loops_in_python):
    for x, options in DEPTHWISE_CASES:
        problem = problem_of(x, x[3], groups=x[3], **options)
        require_same(CompiledDepthwise(), Depthwise(), problem, Blocking(1, 3, 999), True)
        windows, dtype = problem.windows, problem.dtype
        taps = np.ones((*windows.size, x[3]), dtype)
        turned = np.zeros(x, dtype)
        compiled_depthwise.correlation(
            Windows(windows.size, (1, 1), ((2, 0), (3, 0))),
            np.ones(problem.out, dtype),
            1,
            taps,
            turned[:, ::2, 1::2],
        )()
        vectors_of = (*x[:3], -(-x[3] // 8) * 8)
        compiled_depthwise.gradient(
            windows,
            np.ones((x[0], x[1] + 9, x[2] + 9, vectors_of[3]), dtype),
            np.ones((*problem.out[:3], vectors_of[3]), dtype)[:, 1:].copy(),
            np.zeros((*windows.size, vectors_of[3]), dtype),
        )()
    assert {"correlate", "add_gradient"} <= {*loops_in_python}


def test_no_direct_loop_leaves_its_arrays(loops_in_python):
    random = np.random.default_rng(0)
    for size, stride, columns in (((3, 3), (1, 1), 11), ((2, 1), (2, 3), 6), ((1, 4), (1, 2), 3)):
        windows = Windows(size, stride, ((0, 0), (0, 0)))
        height, width = 2 * stride[0] + size[0], (columns - 1) * stride[1] + size[1]
        x = random.standard_normal((2, height, width, 3), np.float32)
        filters = random.standard_normal((*size, 3, 32), np.float32)
        out = np.zeros((2, 3, 2 * columns, 32), np.float32)[:, :, ::2]
        seen = windows.over(x)
        lines = seen.reshape(*seen.shape[:4], -1)
        by_line = filters.reshape(1, size[0], 1, -1, 32)
        products(lines[None, ..., None, :], by_line, out[None])()
        expected = np.einsum("nhwijc,ijco->nhwo", seen, filters)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        total = np.ones((1, 1, size[0], 3 * size[1], 32), np.float32)
        by_value = lines.transpose(3, 4, 0, 1, 2)[None, None]
        products(by_value, expected[None], total, Finish(adds=True))()
        expected = np.einsum("nhwijc,nhwo->ijco", seen, expected).reshape(total.shape) + 1
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)
    assert "multiply" in loops_in_python


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 6, 4, 17), (70, 4, 4, 16)])
def test_no_loop_of_a_filter_gradient_by_winograd_leaves_its_arrays(
    shape, threads, loops_in_python
):
    random = np.random.default_rng(0)
    x, cotangent = (random.standard_normal((*shape[:3], n)) for n in (shape[3], 32))
    found = []
    for dtype in (np.float64, np.float32):  # the former has no compiled loops
        filters = np.full((3, 3, shape[3], 32), np.nan, dtype)
        pool = ThreadPool(threads)
        given = x.astype(dtype), cotangent.astype(dtype), filters, pool
        filter_gradient(Windows((3, 3), (1, 1), ((1, 1), (1, 1))), 1, *given)()
        pool.close()
        found.append(filters)
    assert np.abs(found[1] - found[0]).max() <= 1e-5 * np.abs(found[0]).max()
    assert {"to_points", "multiply"} <= {*loops_in_python}


@pytest.mark.parametrize("rectifies", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_no_loop_of_a_scale_and_shift_leaves_its_arrays(count, rectifies, loops_in_python):
    random = np.random.default_rng(0)
    shift, *scales = random.standard_normal((1 + count, 24), np.float32)
    matrices = random.standard_normal((count, 5, 24), np.float32)
    matrices[0, 2, 3] = np.nan
    terms = [each for pair in zip(matrices, scales, strict=True) for each in pair]
    expected = sum(x * a for x, a in zip(matrices, scales, strict=True)) + shift
    expected = np.maximum(expected, 0) if rectifies else expected
    ScaleAndShift(rectifies).bind([shift, *terms], matrices[-1])()  # over an input
    np.testing.assert_allclose(matrices[-1], expected, rtol=1e-5, atol=1e-6)
    assert "scale_and_shift" in loops_in_python


def test_no_loop_of_a_step_of_an_lstm_leaves_its_arrays(loops_in_python):
    projected, record = np.zeros(2 * 64, np.float32), np.zeros(6 * 2 * 16, np.float32)
    product, *cotangents = projected.copy(), *np.ones((3, 2 * 16), np.float32)
    compiled_recurrent.lstm_step(projected, product, record.copy(), record, 16)
    compiled_recurrent.lstm_step_back((record, record.copy()), *cotangents, projected, 16)
    assert (record.reshape(6, -1)[2:5] == 0.5).all()  # gates
    assert (projected.reshape(2, 4, 16)[:, 3] != 0).all()
    assert {"lstm_step", "lstm_step_back"} <= {*loops_in_python}


def test_no_loop_of_rows_leaves_its_arrays(loops_in_python):
    require_definitions(np.random.default_rng(0).standard_normal((3, 24), np.float32))
    assert "compute_rows" in loops_in_python


@pytest.mark.usefixtures("loops_in_python")
def test_a_loop_that_leaves_its_arrays_is_noticed():
    x, y = np.zeros((1,) * 7, np.float32), np.zeros((1, 1, 1, 1, 16), np.float32)
    call = products(x, y, y.copy())
    arrays = [*call.args]
    for n in (1, 2):
        short = [*arrays[:n], arrays[n][:-1], *arrays[n + 1 :]]
        with pytest.raises(AssertionError):
            call.func(*short)


# How they are compiled


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_loop_is_compiled_once_for_one_signature(loop):
    # Several, or closures, share an index in numba's cache, which processes then write at once.
    assert len(loop.signatures) == 1
    assert loop.py_func.__closure__ is None
    with pytest.raises(TypeError):
        loop()


def test_numba_compiles_only_functions_with_loops():
    # It optimises each by itself: with straight-line code too, compiling took three times as long.
    values = [value for module in MODULES for value in vars(module).values()]
    sources = [inspect.getsource(each.py_func) for each in values if hasattr(each, "py_func")]
    assert sources
    assert [source for source in sources if " for " not in source] == []


SECOND_PROCESS = """
from dist_net.autodiff.kernels.compiled import depthwise_loops, direct_loops
from dist_net.autodiff.kernels.compiled import recurrent_loops, row_loops
from dist_net.autodiff.kernels.compiled import scaling_loops, winograd_loops
loops = [depthwise_loops.correlate, depthwise_loops.add_gradient]
loops += [direct_loops.multiply]
loops += [recurrent_loops.lstm_step, recurrent_loops.lstm_step_back]
loops += [scaling_loops.scale_and_shift]
loops += [row_loops.compute_rows]
loops += [winograd_loops.to_points, winograd_loops.from_points]
print([sum(loop.stats.cache_misses.values()) for loop in loops])
"""


def test_another_process_finds_the_compiled_loops():
    if any(loop.stats.cache_path is None for loop in LOOPS):
        pytest.skip("there is no place that numba can write its cache to")
    assert all("/compiled-" in loop.stats.cache_path for loop in LOOPS)  # for these sources
    command = [sys.executable, "-c", SECOND_PROCESS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str([0] * len(LOOPS))


PART = """
import numba


@numba.njit
def added(x):
    return x + {number}
"""
LOOP = """
from dist_net.ground.compiling import WRITTEN, jit
from part_of_loop import added


@jit(WRITTEN)
def loop(x):
    x[0] = added(x[0])
"""


def test_a_loop_is_compiled_again_when_a_function_that_it_calls_has_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "loop_of_parts.py").write_text(LOOP)
    for number in (1, 2):
        (tmp_path / "part_of_loop.py").write_text(PART.format(number=number))
        importlib.invalidate_caches()
        values = np.zeros(1, np.float32)
        importlib.import_module("loop_of_parts").loop(values)
        del sys.modules["loop_of_parts"], sys.modules["part_of_loop"]
        assert values[0] == number
        kept = [path.name for path in (tmp_path / "__pycache__").glob("compiled-*")]
        assert len(kept) == 1  # what was compiled of the sources before is removed


def as_written(value):
    """The project's function behind a compiled or traced one; None for anything else."""
    function = getattr(value, "py_func", value)
    is_own = inspect.isfunction(function) and function.__module__.startswith("dist_net.")
    return function if is_own else None


def called_by(function, found):
    """Add to ``found`` all functions that are compiled with ``function``, and itself."""
    found.add(function)
    cells = [each.cell_contents for each in function.__closure__ or ()]
    for each in [*map(function.__globals__.get, function.__code__.co_names), *cells]:
        if (called := as_written(each)) and called not in found:
            called_by(called, found)
    return found


@pytest.mark.parametrize("loop", [*LOOPS, *UPDATE_LOOPS], ids=lambda each: each.__qualname__)
def test_all_that_is_compiled_into_a_loop_lies_in_its_folder(loop):
    # The cache's key depends on this folder's sources.
    written = as_written(loop)
    called = called_by(written, set())
    assert len(called) > 1 or loop in UPDATE_LOOPS
    assert {Path(inspect.getfile(each)).parent for each in called} == {
        Path(inspect.getfile(written)).parent
    }


def add_one(x):
    x[0] += 1


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch, caplog):
    numba = compiling.numba

    def without_a_place(signature, cache=False, **options):
        if cache:
            raise RuntimeError("no locator available")
        return numba.njit(signature, **options)

    replaced = SimpleNamespace(njit=without_a_place, config=numba.config)
    monkeypatch.setattr(compiling, "numba", replaced)
    with caplog.at_level(logging.INFO):
        loop = compiling.jit(compiling.WRITTEN)(add_one)
    assert "compiled_code_not_kept name=add_one reason=no locator available" in caplog.text
    values = np.zeros(1, np.float32)
    loop(values)
    assert values[0] == 1


# Inference

NETWORK = Sequential(
    Rescale(),
    Conv2D(16, 3, use_bias=False),
    BatchNorm(activation=leaky_relu),
    Residual(Conv2D(8, 1), BatchNorm(activation=relu), Conv2D(16, 3), BatchNorm()),
    Conv2D(32, 3, stride=2, activation=relu),
    Residual(Conv2D(32, 3, activation=leaky_relu)),
    Flatten(),
    Dense(20, relu),
    Dense(5),
)
MODEL = Model(NETWORK, (16, 16, 3))
WEIGHTS = MODEL.layout.initial(np.random.default_rng(0))
IMAGES = np.random.default_rng(1).integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)


@pytest.fixture
def inference_of():
    """Makes sessions, and ends their threads."""
    made = []

    def make(**options):
        made.append(Inference(MODEL, prepare(MODEL, WEIGHTS), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_compiled_kernels_are_used_where_they_can_be_had(inference_of, caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        fast = inference_of(compiled=True)(IMAGES)
        assert inference_of()(IMAGES).tobytes() == fast.tobytes()
        assert "kernels=numpy" not in caplog.text
        plain = inference_of(compiled=False)(IMAGES)
        assert "kernels=numpy" in caplog.text
        caplog.clear()
        make_numba_missing(monkeypatch)
        assert inference_of()(IMAGES).tobytes() == plain.tobytes()
    assert "kernels=numpy" in caplog.text


def make_numba_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("vectors", "epilogues"):
        monkeypatch.delitem(sys.modules, f"dist_net.autodiff.kernels.compiled.{name}")


PROCESS = """
import sys
import numpy as np
from dist_net.nn import Conv2D, DepthwiseConv2D, Model
from dist_net.nn.inference import Inference, prepare
model = Model({layer}, (4, 4, 16), input_dtype="f4")
prepared = prepare(model, model.layout.initial(np.random.default_rng(0)))
session = Inference(model, prepared, compiled={compiled})
session(np.zeros((1, 4, 4, 16), "f4"))
session.close()
prefix = "dist_net.autodiff.kernels.compiled."
print(*sorted(name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)))
print("numba" in sys.modules)
"""


@pytest.mark.parametrize(
    ("layer", "compiled", "loaded"),
    [
        ("Conv2D(16, 3)", False, ""),
        ("Conv2D(16, 1)", True, "direct_loops epilogues vectors"),
        ("DepthwiseConv2D(3)", True, "depthwise_loops epilogues vectors"),
        ("Conv2D(16, 3)", True, "epilogues vectors winograd_loops"),
    ],
)
def test_numba_and_the_loops_are_loaded_only_for_the_layers_that_need_them(layer, compiled, loaded):
    script = PROCESS.format(layer=layer, compiled=compiled)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [loaded, str(compiled)]
