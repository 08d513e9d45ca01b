"""Embeddings, layer norm and attention against their definitions, and layers used twice."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.errors import DTypeError, IndexRangeError, ParameterError, ShapeError
from naming import naming

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 5, 6)).astype(np.float32)


def applied(layer, x):
    """The layer's output, and its random parameters by name."""
    scope = nn.Scope()
    output = layer(ad.variable("x", x.shape, x.dtype), scope)
    layout = nn.Layout(scope.parameters)
    parameters = layout.views(RNG.standard_normal(layout.size).astype(np.float32))
    return ad.evaluate([output], x=x, **parameters)[0], parameters


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_an_embedding_is_a_row_of_the_table_for_each_integer(shape, dtype):
    numbers = RNG.integers(0, 7, shape).astype(dtype)
    found, parameters = applied(nn.Embedding(7, 3), numbers)
    np.testing.assert_array_equal(found, parameters["table"][numbers], strict=True)


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_integer_outside_the_table_is_refused(wrong):
    with pytest.raises(IndexRangeError, match=naming("Embedding", wrong, "0 to 6")):
        applied(nn.Embedding(7, 3), np.array([0, wrong]))
    with pytest.raises(DTypeError, match=naming("Embedding", "float32")):
        applied(nn.Embedding(7, 3), X)


def test_layer_norm_has_mean_0_and_variance_1_before_gamma_and_beta():
    found, parameters = applied(nn.LayerNorm(), X)
    normal = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5)
    expected = normal * parameters["gamma"] + parameters["beta"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    constant, parameters = applied(nn.LayerNorm(), np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(constant, [parameters["beta"]] * 2)


def attention(x, heads, causal, parameters):
    """One sample and one head at a time."""
    width = x.shape[2] // heads
    result = np.empty_like(x)
    for i, sample in enumerate(x):
        projected = sample @ parameters["kernel"] + parameters["bias"]
        queries, keys, values = projected.reshape(len(sample), 3, heads, width).swapaxes(0, 1)
        for head in range(heads):
            scores = queries[:, head] @ keys[:, head].T / np.sqrt(width)
            if causal:
                scores[np.triu_indices(len(sample), 1)] = -np.inf
            shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            result[i, :, head * width : (head + 1) * width] = shares @ values[:, head]
    return result @ parameters["output_kernel"] + parameters["output_bias"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_attention_is_that_of_each_head(heads, causal):
    found, parameters = applied(nn.MultiHeadAttention(heads, causal), X)
    expected = attention(X, heads, causal, parameters)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_causal_place_does_not_see_the_places_after_it():
    scope = nn.Scope()
    x = ad.variable("x", X.shape)
    output = nn.MultiHeadAttention(2, causal=True)(x, scope)
    (gradient,) = ad.gradients(output[:, 2].sum(), [x])
    layout = nn.Layout(scope.parameters)
    weights = layout.initial(np.random.default_rng(0))
    (found,) = ad.evaluate([gradient], x=X, **layout.views(weights))
    assert np.all(found[:, 3:] == 0)
    assert np.all(found[:, :3] != 0)


def test_the_widths_and_heads_are_checked():
    with pytest.raises(ShapeError, match=naming("MultiHeadAttention", 4, X.shape)):
        applied(nn.MultiHeadAttention(4), X)
    with pytest.raises(ShapeError, match=naming("MultiHeadAttention", "(5, 6)")):
        applied(nn.MultiHeadAttention(2), X[0])
    with pytest.raises(ShapeError, match=naming("heads", 0)):
        nn.MultiHeadAttention(0)


def test_an_embedding_and_its_unembedding_share_a_table_and_its_gradient():
    embedding = nn.Embedding(7, 3)
    network = nn.Sequential(embedding, nn.Dense(3), nn.Unembedding(embedding))
    model = nn.Model(network, (), input_dtype=np.uint8)
    assert [name for name, _ in model.layout.shapes] == [
        *("embedding/table", "dense/kernel", "dense/bias")
    ]
    scope = nn.Scope()
    output = network(ad.variable("x", (4,), np.uint8), scope)
    table = scope.variables["embedding/table"]
    (gradient,) = ad.gradients(output.sum(), [table])
    views = model.layout.views(model.layout.initial(np.random.default_rng(0)))
    numbers = np.array([1, 1, 6, 0], np.uint8)
    (found,) = ad.evaluate([gradient], x=numbers, **views)
    hidden = views["embedding/table"][numbers] @ views["dense/kernel"]
    expected = np.tile(hidden.sum(0), (7, 1))
    np.add.at(expected, numbers, views["embedding/table"].sum(0) @ views["dense/kernel"].T)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_layer_object_that_is_used_again_shares_its_parameters():
    dense, pair = nn.Dense(4), nn.Sequential(nn.Dense(4), nn.Lambda(ad.tanh))
    network = nn.Sequential(dense, nn.Dense(4), nn.Residual(dense, pair), pair)
    model = nn.Model(network, (4,), input_dtype=np.float32)
    assert [name for name, _ in model.layout.shapes if name.endswith("kernel")] == [
        *("dense/kernel", "dense_1/kernel", "residual/sequential/dense/kernel")
    ]


def test_a_layer_object_is_not_used_again_for_another_shape():
    dense = nn.Dense(4)
    with pytest.raises(ParameterError, match=naming("dense/kernel")):
        nn.Model(nn.Sequential(dense, dense), (3,), input_dtype=np.float32)
