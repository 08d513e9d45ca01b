"""Plans of random graphs agree with the naive evaluator, which computes each node by itself.

The numbers are small and whole, so that every operation drawn here is exact, in any order. Ties
and equal values are frequent then, and plans have to agree to the last bit, whatever was
rewritten, fused into strips, viewed or overwritten, and whatever the variables hold next.
"""

from unittest import mock

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net.autodiff.compiler import steps
from dist_net.autodiff.compiler.naive import evaluate_naively
from dist_net.autodiff.expression import topological_order

FIXED = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
SHAPES = st.lists(st.sampled_from([1, 2, 3, 3]), max_size=3).map(tuple)
STRIP_BYTES = st.sampled_from([1, 16, 1 << 16])  # arrays of four times as many bytes are fused
DTYPES = [np.float64, np.float32, np.int8, np.int64]


@np.errstate(all="ignore")
def plainly(outputs, arrays):
    return evaluate_naively(outputs, **arrays)


def fits(function, *nodes):
    try:
        function(*(np.zeros(node.shape) for node in nodes))
    except ValueError:
        return False
    return True


# Each function draws a node on its operands, whose floats are within LARGE of 0.

LARGE = 64
ARITHMETIC = [ad.add, ad.subtract, ad.multiply, ad.maximum, ad.minimum]
COMPARISONS = [ad.less, ad.less_equal, ad.greater, ad.greater_equal, ad.equal]
UNARY = [
    *(ad.negative, ad.square, ad.stop_gradient),
    lambda x: ad.negative(ad.negative(x)),
    lambda x: x - (-x),
    lambda x: x + ad.transpose(ad.transpose(x)),
]
WITH_NUMBER = [
    *(lambda x, n: x + n, lambda x, n: n + x, lambda x, n: x - n, lambda x, n: n - x),
    *(lambda x, n: x * n, lambda x, n: n * x, lambda x, n: n * (x * n), lambda x, n: -(n * x)),
]


def arithmetic(draw, x, y):
    if not fits(np.add, x, y):
        y = ad.max(y)
    return draw(st.sampled_from(ARITHMETIC))(*draw(st.permutations([x, ad.astype(y, x.dtype)])))


def unary(draw, x):
    return draw(st.sampled_from(UNARY))(x)


def with_number(draw, x):
    return draw(st.sampled_from(WITH_NUMBER))(x, draw(st.sampled_from([0, 1, -1, 2])))


def condition(draw, x, y):
    other = ad.astype(y, x.dtype) if fits(np.add, x, y) else draw(st.sampled_from([0, 1]))
    truth = draw(st.sampled_from(COMPARISONS))(x, other)
    return draw(st.sampled_from([truth, ad.logical_not(truth)]))


def counted(draw, x, y):
    return ad.astype(condition(draw, x, y), draw(st.sampled_from([np.float64, x.dtype])))


def masked(draw, x, y):
    return ad.where(condition(draw, x, y), x, 0)


def selected(draw, x, y):
    alternatives = draw(st.permutations([x, draw(st.sampled_from([-x, x * x, 1]))]))
    return ad.where(condition(draw, x, y), *alternatives)


def reduced(draw, x):
    axes = tuple(axis for axis in range(-x.ndim, 0) if draw(st.booleans()))
    function = draw(st.sampled_from([ad.sum, ad.max]))
    return function(x, draw(st.sampled_from([None, axes])), draw(st.booleans()))


def transposed(draw, x):
    return ad.transpose(x, draw(st.permutations(range(x.ndim))))


def reshaped(draw, x):
    shape = draw(st.sampled_from([x.shape[::-1], (-1,), (1, *x.shape), (*x.shape, 1)]))
    return ad.reshape(x, shape)


def repeated(draw, x):
    shape = tuple(draw(st.sampled_from([1, 3])) if n == 1 else n for n in x.shape)
    return ad.broadcast_to(x, (draw(st.sampled_from([1, 2])), *shape))


def product(draw, x, y):
    if x.dtype.kind != "f":
        return counted(draw, x, y)
    y = ad.astype(y, x.dtype)
    if x.ndim == 0 or not fits(np.matmul, x, y):
        y = ad.transpose(x)
    return x @ y if x.ndim and fits(np.matmul, x, y) else x * y if fits(np.add, x, y) else -x


def gathered(draw, x):
    if x.ndim != 2:
        return unary(draw, x)
    largest, smallest = ad.argmax(x, 1), ad.astype(ad.argmax(-x, 1), np.uint8)
    return x[np.arange(x.shape[0]), draw(st.sampled_from([largest, smallest]))]


def converted(draw, x, y):
    return ad.astype(draw(st.sampled_from([x, -x])), y.dtype)


def sliced(draw, x):
    return x[index_of(draw, x)]


def index_of(draw, x):
    """A basic index that leaves at least one element."""
    entries = []
    for length in x.shape:
        places = draw(st.slices(length).filter(lambda each, length=length: range(length)[each]))
        entries.append(draw(st.sampled_from([places, slice(None), -1, 0])))
    return (*draw(st.sampled_from([(), (None,), (...,)])), *entries)


def among_zeros(draw, x, y):
    index = index_of(draw, y)
    fitting = x if x.shape == y[index].shape else y[index] * y[index]
    return ad.zeros_around(fitting, y.shape, index)


def joined(draw, x, y):
    if x.ndim == 0:
        return arithmetic(draw, x, y)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    others = [x, -x, ad.astype(y, x.dtype)] if x.shape == y.shape else [x, x * x]
    return ad.concatenate([x, *draw(st.lists(st.sampled_from(others), max_size=2))], axis)


def as_map(draw, x):
    """The matrix that ``x`` is, or a row of its elements, as one image with one channel."""
    rows = x if x.ndim == 2 else ad.reshape(x, (1, -1))
    image = ad.reshape(rows, (1, *rows.shape, 1))
    return ad.transpose(image, draw(st.sampled_from([(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0)])))


def convolved(draw, x, y):
    if x.dtype.kind != "f":
        return counted(draw, x, y)
    image = as_map(draw, x)
    strides, groups = (
        draw(st.sampled_from([1, 2, (1, 3)])),
        draw(st.sampled_from([1, 1, image.shape[3]])),
    )
    shape = (2, 3, image.shape[3] // groups, groups)
    values = ad.constant(np.array([[1, 0, -1], [0, 2, 1]], x.dtype).reshape(2, 3, 1, 1))
    kernel = ad.broadcast_to(
        draw(st.sampled_from([values, values * ad.sum(ad.astype(y, x.dtype))])), shape
    )
    return ad.conv2d(image, kernel, strides, "same", groups)


def pooled(draw, x):
    if x.dtype.kind != "f":
        return unary(draw, x)
    size = draw(st.sampled_from([1, 2, (1, 2), (2, 1)]))
    return ad.max_pool(as_map(draw, x), size, draw(st.sampled_from([None, 1, 2])), "same")


OF_ONE = [unary, with_number, reduced, transposed, reshaped, repeated, gathered, sliced, pooled]
OF_TWO = [
    *(arithmetic, arithmetic, counted, masked, selected, product, converted),
    *(joined, joined, among_zeros, convolved),
]


def contents_of(variables, seed):
    random = np.random.default_rng(seed)
    return {
        node.operation.name: random.integers(-2, 3, node.shape).astype(node.dtype)
        for node in variables
    }


@st.composite
def graphs(draw, dtypes):
    """Some nodes, and several contents of the variables that they need."""
    nodes = [
        ad.variable(f"x{i}", draw(SHAPES), draw(st.sampled_from(dtypes)))
        for i in range(draw(st.integers(1, 3)))
    ]
    seeds = draw(st.lists(st.integers(0, 100), min_size=2, max_size=3))
    contents = [contents_of(nodes, seed) for seed in seeds]
    nodes.append(ad.constant(np.array([[1, -2, 0]], dtypes[0])))
    for _ in range(draw(st.integers(1, 14))):
        x, y = draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes))
        kind = draw(st.sampled_from([*OF_ONE, *OF_TWO]))
        node = kind(draw, x) if kind in OF_ONE else kind(draw, x, y)
        values = [plainly([node], arrays)[0] for arrays in contents]
        if node.dtype.kind == "f" and np.abs(values).max() > LARGE:
            node = ad.minimum(ad.maximum(node, -LARGE), LARGE)
        nodes.append(node)
    return nodes, contents


def refill(arrays, contents):
    for name, array in arrays.items():
        array[...] = contents[name]


@settings(FIXED, max_examples=300)
@given(graphs(DTYPES), STRIP_BYTES, st.data())
def test_plans_agree_with_the_naive_evaluator(graph, strip_bytes, data):
    nodes, contents = graph
    outputs = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=6))
    places = [
        np.full(node.shape, 77, node.dtype) if data.draw(st.booleans()) else None
        for node in outputs
    ]
    bindings = []
    with mock.patch.object(steps, "STRIP_BYTES", strip_bytes):
        plan = ad.compile(outputs)
        for into in (places, None):
            arrays = {name: array.copy() for name, array in contents[0].items()}
            bindings.append((arrays, plan.bind(arrays, into)))
    for new in (*contents, contents[0]):
        expected = plainly(outputs, new)
        for arrays, bound in bindings:
            refill(arrays, new)
            for value, wanted in zip(bound.run(), expected, strict=True):
                np.testing.assert_array_equal(value, wanted, strict=True)
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, new[name])
    for place, output in zip(places, bindings[0][1].outputs, strict=True):
        assert place is None or output is place


@settings(FIXED, max_examples=150)
@given(graphs([np.float64]), STRIP_BYTES, st.data())
def test_plans_of_gradients_agree_with_the_naive_evaluator(graph, strip_bytes, data):
    nodes, contents = graph
    summed = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
    total = sum((ad.sum(node * node) for node in summed), ad.constant(0.0, np.float64))
    by = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=4))
    outputs = data.draw(st.permutations([total, *ad.gradients(total, by), *summed]))
    arrays = {name: array.copy() for name, array in contents[0].items()}
    with mock.patch.object(steps, "STRIP_BYTES", strip_bytes):
        bound = ad.compile(outputs).bind(arrays)
    for new in (*contents, contents[0]):
        refill(arrays, new)
        everything = plainly(topological_order(outputs), new)
        # Cotangents may leave the whole numbers: where elements tie, and beyond 2**53.
        precision = 1e-12 * max(1.0, *(np.abs(value).max(initial=0) for value in everything))
        for value, wanted in zip(bound.run(), plainly(outputs, new), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-9, atol=precision, strict=True)
