"""Random graphs have the values and the first and second derivatives that autograd finds."""

from unittest import mock

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_net import autodiff as ad
from dist_net.autodiff.compiler import steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:Output seems independent of input"),
    pytest.mark.filterwarnings("ignore:overflow encountered in"),  # in its VJP of tanh
]

FIXED = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
SHAPES = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)


def their_softmax(x):
    exponentials = anp.exp(x - anp.max(x, -1, keepdims=True))
    return exponentials / anp.sum(exponentials, -1, keepdims=True)


# Pairs of functions: ours and theirs.
UNARY = [
    (ad.negative, anp.negative),
    (ad.tanh, anp.tanh),
    (ad.square, anp.square),
    (lambda x: ad.exp(ad.tanh(x)), lambda x: anp.exp(anp.tanh(x))),
    (lambda x: ad.log(ad.square(x) + 1.5), lambda x: anp.log(anp.square(x) + 1.5)),
    (lambda x: ad.sqrt(ad.square(x) + 1.5), lambda x: anp.sqrt(anp.square(x) + 1.5)),
    (lambda x: 0.5 - 3.0 * (x * 2.0), lambda x: 0.5 - 3.0 * (x * 2.0)),
    (lambda x: ad.maximum(x, 0.25), lambda x: anp.maximum(x, 0.25)),
    (lambda x: ad.where(x > 0.125, x, x * 0.5), lambda x: anp.where(x > 0.125, x, x * 0.5)),
    (lambda x: ad.where(x > -0.25, x, 0.0), lambda x: x * (x > -0.25)),
]
ON_ROWS = [(ad.softmax, their_softmax), (ad.log_softmax, lambda x: anp.log(their_softmax(x)))]
BINARY = [
    (ad.add, anp.add),
    (ad.subtract, anp.subtract),
    (ad.multiply, anp.multiply),
    (lambda x, y: x / (ad.square(y) + 1.5), lambda x, y: x / (anp.square(y) + 1.5)),
    (ad.maximum, anp.maximum),
    (ad.minimum, anp.minimum),
]
REDUCTIONS = [(ad.sum, anp.sum), (ad.mean, anp.mean), (ad.max, anp.max)]


class Graph:
    """Expressions, and for each the function that computes it from the values before it."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.arrays = {f"x{i}": value for i, value in enumerate(inputs)}
        self.variables = [ad.variable(name, v.shape, v.dtype) for name, v in self.arrays.items()]
        self.nodes, self.values, self.functions = list(self.variables), list(inputs), []

    def append(self, functions, *positions):
        ours, theirs = functions
        self.nodes.append(ours(*(self.nodes[i] for i in positions)))
        self.functions.append(lambda values: theirs(*(values[i] for i in positions)))
        self.values.append(self.functions[-1](self.values))
        if np.abs(self.values[-1]).max() > 100:  # large numbers would blur the comparison
            self.append((ad.tanh, anp.tanh), len(self.nodes) - 1)

    def weights(self):
        return [np.cos(np.arange(node.size)).reshape(node.shape) for node in self.nodes]

    def ours(self):
        """The sum of all nodes, each element with its own weight."""
        return weighted_sum(self.nodes, self.weights())

    def theirs(self, *inputs):
        values = list(inputs)
        for function in self.functions:
            values.append(function(values))
        return their_weighted_sum(values, self.weights())


def weighted_sum(nodes, weights):
    terms = [ad.sum(node * weight) for node, weight in zip(nodes, weights, strict=True)]
    return sum(terms[1:], terms[0])


def their_weighted_sum(values, weights):
    return sum(anp.sum(value * weight) for value, weight in zip(values, weights, strict=True))


def fits(function, *values):
    try:
        function(*values)
    except ValueError:
        return False
    return True


def grow(draw, graph):
    """Appends a node that is drawn, where it fits."""
    kind = draw(st.sampled_from(["unary", "rows", "binary", "binary", "reduce", "matmul", "view"]))
    position = draw(st.integers(0, len(graph.nodes) - 1))
    x = graph.nodes[position]
    if kind == "unary":
        graph.append(draw(st.sampled_from(UNARY)), position)
    elif kind == "rows" and x.ndim > 0:
        graph.append(draw(st.sampled_from(ON_ROWS)), position)
    elif kind == "reduce":
        ours, theirs = draw(st.sampled_from(REDUCTIONS))
        axes = tuple(axis for axis in range(-x.ndim, 0) if draw(st.booleans()))
        axes, keep = draw(st.sampled_from([None, axes])), draw(st.booleans())
        pair = lambda y: ours(y, axes, keep), lambda y: theirs(y, axis=axes, keepdims=keep)
        graph.append(pair, position)
    elif kind == "view":
        graph.append(drawn_view(draw, x), position)
    elif kind in ("binary", "matmul"):
        pairs = BINARY if kind == "binary" else [(ad.matmul, anp.matmul)]
        function = np.add if kind == "binary" else np.matmul
        others = [
            i for i, v in enumerate(graph.values) if fits(function, graph.values[position], v)
        ]
        if others:
            graph.append(draw(st.sampled_from(pairs)), position, draw(st.sampled_from(others)))


def drawn_view(draw, x):
    kind = draw(st.sampled_from(["reshape", "transpose", "broadcast_to"]))
    if kind == "transpose":
        axes = draw(st.permutations(range(x.ndim)))
        return lambda y: ad.transpose(y, axes), lambda y: anp.transpose(y, axes)
    if kind == "reshape":
        shape = draw(st.sampled_from([x.shape[::-1], (x.size,), (1, *x.shape), (*x.shape, 1)]))
        return lambda y: ad.reshape(y, shape), lambda y: anp.reshape(y, shape)
    shape = tuple(draw(st.sampled_from([1, 3])) if n == 1 else n for n in x.shape)
    return (
        lambda y: ad.broadcast_to(y, (2, *shape)),
        # autograd has no VJP for a broadcast that adds axes
        lambda y: anp.broadcast_to(anp.reshape(y, (1, *anp.shape(y))), (2, *shape)),
    )


@st.composite
def graphs(draw, nodes):
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
    graph = Graph([np.asarray(random.standard_normal(shape)) for shape in shapes])
    for _ in range(draw(st.integers(1, nodes))):
        grow(draw, graph)
    return graph


def agree(ours, theirs):
    for value, wanted in zip(ours, theirs, strict=True):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(value, wanted, rtol=1e-8, atol=1e-8 * scale, strict=True)


def every(graph):
    return tuple(range(len(graph.inputs)))


@settings(FIXED, max_examples=220)
@given(graphs(nodes=15), st.sampled_from([8, 64, 1 << 16]))
def test_values_and_gradients_are_those_of_autograd(graph, strip_bytes):
    with mock.patch.object(steps, "STRIP_BYTES", strip_bytes):
        gradients = ad.gradients(graph.ours(), graph.variables)
        values = ad.evaluate([*graph.nodes, *gradients], **graph.arrays)
    theirs = autograd.grad(graph.theirs, every(graph))(*graph.inputs)
    agree(values, [*graph.values, *theirs])


@settings(FIXED, max_examples=60)
@given(graphs(nodes=8))
def test_second_derivatives_are_those_of_autograd(graph):
    directions = [np.sin(1 + np.arange(value.size)).reshape(value.shape) for value in graph.inputs]

    def their_slope(*inputs):
        slopes = autograd.grad(graph.theirs, every(graph))(*inputs)
        return their_weighted_sum(slopes, directions)

    slope = weighted_sum(ad.gradients(graph.ours(), graph.variables), directions)
    second = ad.evaluate(ad.gradients(slope, graph.variables), **graph.arrays)
    agree(second, autograd.grad(their_slope, every(graph))(*graph.inputs))
