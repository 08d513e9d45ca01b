"""Expressions know their shape and dtype when they are built, and refuse what does not fit."""

import operator

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.errors import DTypeError, GraphError, ShapeError
from naming import naming


def floats(*shape):
    return ad.variable(f"floats{shape}", shape, np.float64)


LABELS = ad.variable("labels", (3,), np.uint8)


@pytest.mark.parametrize(
    ("expression", "shape", "dtype"),
    [
        (floats(4, 1) + floats(3), (4, 3), np.float64),
        (floats(0, 1) * floats(1, 3), (0, 3), np.float64),
        (ad.variable("x", (2,)) * 0.5, (2,), np.float32),
        (LABELS + 1, (3,), np.uint8),
        (floats(4) < 0, (4,), np.bool_),
        (ad.where(floats(3) > 0, floats(2, 1), 0.0), (2, 3), np.float64),
        (ad.sum(floats(2, 3, 4), -1), (2, 3), np.float64),
        (ad.sum(floats(2, 3, 4), (-1, 0), keepdims=True), (1, 3, 1), np.float64),
        (ad.sum(floats(2, 3, 4), ()), (2, 3, 4), np.float64),
        (ad.max(floats(2, 3, 4)), (), np.float64),
        (ad.max(floats(0, 3), 1), (0,), np.float64),
        (ad.mean(floats(2, 0), 0), (0,), np.float64),
        (ad.argmax(floats(2, 3)), (), np.intp),
        (ad.argmax(floats(2, 3, 4), -2), (2, 4), np.intp),
        (floats(3, 5)[:, LABELS], (3, 3), np.float64),
        (ad.reshape(floats(2, 3, 4), (-1, 4)), (6, 4), np.float64),
        (ad.transpose(floats(2, 3, 4)), (4, 3, 2), np.float64),
        (ad.transpose(floats(2, 3, 4), (0, -1, 1)), (2, 4, 3), np.float64),
        (ad.matrix_transpose(floats(2, 3, 4)), (2, 4, 3), np.float64),
        (floats(2, 1, 3, 4) @ floats(5, 4, 6), (2, 5, 3, 6), np.float64),
        (floats(3) @ floats(3), (), np.float64),
        (floats(2, 3, 4) @ floats(4), (2, 3), np.float64),
        (floats(4) @ floats(2, 4, 5), (2, 5), np.float64),
        (ad.astype(LABELS, np.float32), (3,), np.float32),
        (ad.uniform((2, 3), np.random.default_rng()), (2, 3), np.float32),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
def test_shape_and_dtype_are_known_when_built(expression, shape, dtype):
    assert (expression.shape, expression.dtype) == (shape, dtype)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: floats(4) + floats(3), r"add.*\(4,\).*\(3,\)"),
        (
            lambda: ad.where(floats(2) > 0, floats(3), floats(4)),
            r"where.*\(2,\).*\(3,\).*\(4,\)",
        ),
        (lambda: floats(2, 3) @ floats(2, 3), r"matmul.*\(2, 3\).*\(2, 3\)"),
        (lambda: floats(3) @ floats(4), r"matmul.*\(3,\).*\(4,\)"),
        (lambda: floats(2, 3) @ floats(2), r"matmul.*\(2, 3\).*\(2,\)"),
        (
            lambda: floats(2, 3, 3) @ floats(5, 3, 3),
            r"matmul.*\(2, 3, 3\).*\(5, 3, 3\)",
        ),
        (lambda: floats(2) @ floats(), r"matmul.*\(2,\).*\(\)"),
        (lambda: ad.sum(floats(2, 3), 2), r"sum.*axis 2.*\(2, 3\)"),
        (lambda: ad.sum(floats(2, 3), (0, -2)), r"sum.*\(0, -2\).*\(2, 3\)"),
        (lambda: ad.max(floats(), 0), r"max.*axis 0.*\(\)"),
        (lambda: ad.max(floats(0, 3)), r"max.*\(0, 3\)"),
        (lambda: ad.mean(floats(0, 3), 0), r"mean.*\(0, 3\)"),
        (
            lambda: ad.argmax(floats(3, 0), 1),
            r"argmax.*\(3, 0\).*axis 1",
        ),
        (lambda: ad.argmax(floats(0)), r"argmax.*\(0,\)"),
        (lambda: ad.argmax(floats(3), 1), r"argmax.*axis 1.*\(3,\)"),
        (lambda: ad.broadcast_to(floats(3), (3, 2)), r"broadcast_to.*\(3,\).*\(3, 2\)"),
        (lambda: ad.broadcast_to(floats(2, 3), (3,)), r"broadcast_to.*\(2, 3\).*\(3,\)"),
        (lambda: ad.reshape(floats(2, 3), (4,)), r"reshape.*\(2, 3\).*6 elements.*\(4,\)"),
        (lambda: ad.reshape(floats(2, 3), (4, -1)), r"reshape.*\(2, 3\).*\(4, -1\)"),
        (lambda: ad.reshape(floats(), (-1, -1)), r"reshape.*\(\).*\(-1, -1\)"),
        (lambda: ad.reshape(floats(2, 3), (-2, -3)), r"reshape.*\(2, 3\).*\(-2, -3\)"),
        (lambda: ad.transpose(floats(2, 3), (0, 0)), r"transpose.*\(0, 0\).*\(2, 3\)"),
        (lambda: ad.matrix_transpose(floats(3)), r"matrix_transpose.*\(3,\)"),
        (lambda: floats(2, 3)[LABELS, floats(4) < 0, 0], r"3 indices.*\(2, 3\)"),
        (lambda: ad.stack([floats(2), floats(3)]), r"\(1, 2\).*\(1, 3\)"),
        (lambda: ad.split(floats(4, 3), 2, 1), r"split.*\(4, 3\).*2.*axis 1"),
        (lambda: ad.pad(floats(4, 3), (1, 2, 3)), r"pad.*\(1, 2, 3\).*\(4, 3\)"),
        (lambda: ad.pad(floats(4), -1), r"pad.*-1"),
        (lambda: ad.einsum("ij,jk", floats(4, 3), floats(4, 3)), r"einsum.*'ij,jk'.*\(4, 3\)"),
        (lambda: ad.einsum("ii->i", floats(4, 4)), r"einsum.*'ii->i'.*\(4, 4\)"),
        (lambda: ad.einsum("ij->k", floats(4, 4)), r"einsum.*'ij->k'"),
        (lambda: ad.einsum("ij,jk", floats(4, 4)), r"einsum.*'ij,jk'"),
        (lambda: ad.einsum("...i,...i", floats(2, 4), floats(3, 4)), r"einsum.*'...i,...i'"),
        (lambda: ad.einsum("...ij", floats(4)), r"einsum.*'...ij'"),
        (lambda: ad.top_k(floats(2, 3), 4), r"top_k.*k=4.*\(2, 3\)"),
        (lambda: ad.top_k(floats(2, 3), 0), "top_k: k 0"),
        (lambda: ad.var(floats(1), ddof=1), "var: 1 .*ddof=1"),
        (lambda: floats(2, 3)[np.ones((3, 2), bool)], r"\(2, 3\).*boolean"),
        (lambda: ad.variable("x", (2, -1)), r"'x'.*\(2, -1\)"),
        (lambda: ad.gradients(floats(2), [floats(2)]), r"\(2,\)"),
    ],
)
def test_a_wrong_shape_is_refused_with_the_shapes_named(build, told):
    with pytest.raises(ShapeError, match=told):
        build()


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: floats(3) + ad.variable("x", (3,)), "add.*float64.*float32"),
        (lambda: floats(3) + LABELS, "add.*float64.*uint8"),
        (lambda: floats(3, 3) @ ad.variable("x", (3,)), "matmul.*float64.*float32"),
        (lambda: LABELS @ LABELS, "matmul.*uint8"),
        (lambda: LABELS / LABELS, "divide.*uint8"),
        (lambda: ad.exp(LABELS), "exp.*uint8"),
        (lambda: ad.log(LABELS), "log"),
        (lambda: ad.sqrt(LABELS), "sqrt"),
        (lambda: ad.tanh(LABELS), "tanh"),
        (lambda: ad.negative(LABELS > 1), "negative.*bool"),
        (lambda: ad.sum(LABELS > 1), "sum.*bool"),
        (
            lambda: ad.where(LABELS, 1.0, floats(3)),
            "where.*bool.*uint8",
        ),
        (lambda: ad.logical_not(LABELS), "logical_not.*bool.*uint8"),
        (
            lambda: floats(3, 4)[floats(3)],
            "index.*float64",
        ),
        (lambda: floats(3, 4)[:, [0.5]], "index.*float64"),
        (lambda: floats(3)[LABELS > 1], r"index.*bool.*x\[mask\].*where.*masked_mean"),
        (lambda: ad.leaky_relu(LABELS), "leaky_relu.*uint8"),
        (lambda: ad.less_equal(floats(3), LABELS), "less_equal.*float64.*uint8"),
        (lambda: LABELS * 0.5, "0.5.*uint8"),
        (lambda: LABELS + 300, "300.*uint8"),
        (lambda: LABELS - float("nan"), "nan.*uint8"),
        (lambda: ad.mean(LABELS), "uint8"),
        (lambda: ad.add(1.0, 2.0), "1.0.*2.0"),
        (lambda: ad.constant(np.array([None])), "object"),
        (lambda: ad.gradients(ad.max(LABELS), [LABELS]), "uint8"),
    ],
)
def test_a_wrong_dtype_is_refused_with_the_dtypes_named(build, told):
    with pytest.raises(DTypeError, match=told):
        build()


@pytest.mark.parametrize(
    "function",
    [
        operator.add,
        operator.sub,
        operator.mul,
        operator.truediv,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
        operator.matmul,
    ],
)
def test_operators_take_arrays_on_either_side(function):
    x = ad.variable("x", (2, 2), np.float64)
    value, other = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[4.0, 2.0], [3.0, 1.0]])
    for expression, expected in (
        (function(x, other), function(value, other)),
        (function(other, x), function(other, value)),
    ):
        assert isinstance(expression, ad.Expression)
        np.testing.assert_array_equal(ad.evaluate([expression], x=value)[0], expected)


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)])
def test_numbers_take_the_dtype_of_the_expression(number):
    for dtype in (np.float32, np.float64, np.uint8):
        x = ad.variable("x", (2,), dtype)
        assert (x * number).dtype == (number * x).dtype == dtype


def test_a_constant_is_a_copy_that_nothing_writes_to():
    array = np.ones(3)
    doubled = ad.constant(array) * 2.0
    array[:] = 5
    np.testing.assert_array_equal(ad.evaluate([doubled])[0], [2, 2, 2])


def test_an_expression_has_no_truth_value():
    x = floats(3)
    with pytest.raises(GraphError, match=r"where\(\)"):
        assert 0 < x < 1


def test_methods_are_those_of_numpy():
    values = np.random.default_rng(0).standard_normal((2, 3, 4))
    x = ad.variable("x", values.shape, values.dtype)
    methods = [
        *(lambda x: x.sum(), lambda x: x.mean(1), lambda x: x.max(-1, keepdims=True)),
        *(lambda x: x.min((0, 2)), lambda x: x.reshape(6, -1), lambda x: x.reshape((6, 4))),
        *(lambda x: x.T, lambda x: x.transpose(), lambda x: x.transpose(1, 0, 2)),
        *(lambda x: x.transpose([2, 1, 0]), lambda x: x.clip(-1, 1), lambda x: x.astype("f4")),
    ]
    for found, method in zip(ad.evaluate([f(x) for f in methods], x=values), methods, strict=True):
        np.testing.assert_allclose(found, method(values), rtol=1e-15, strict=True)


def test_what_changes_nothing_makes_no_node():
    x = floats(2, 3)
    assert ad.astype(x, np.float64) is x
    assert ad.reshape(x, (2, -1)) is x
    assert ad.transpose(x, (0, 1)) is x
    assert ad.broadcast_to(x, (2, 3)) is x
    assert ad.sum(x, ()) is x


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("value", [None, "1.5", b"2", 1j, np.array(["a"]), np.array([None])])
def test_what_is_no_number_is_refused(value, dtype):
    x = ad.variable("x", (1,), dtype)
    for operation in (lambda: x * value, lambda: value + x, lambda: x == value):
        with pytest.raises(DTypeError):
            operation()
    with pytest.raises(DTypeError, match=naming("constant", repr(value), np.asarray(value).dtype)):
        ad.constant(value)


def test_equality_compares_elements_and_expressions_can_be_keys():
    x = ad.variable("x", (3,))
    equal, unequal, whole = ad.evaluate(
        [x == 2.0, x != x[::-1], x == x], x=np.array([1, 2, 3], "f4")
    )
    np.testing.assert_array_equal(equal, [False, True, False])
    np.testing.assert_array_equal(unequal, [True, False, True])
    assert whole.all()
    assert {x: 1}[x] == 1
    with pytest.raises(GraphError, match=r"where\(\)"):
        bool(x == x)
