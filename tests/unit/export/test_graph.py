"""The nodes that a network becomes, without a program that runs them."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff import Expression
from dist_net.autodiff.operations.normalization import batch_normalize
from dist_net.errors import ExportError

pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")

from dist_net.export.onnx.onnx_model import add_network
from dist_net.export.onnx.translation import Graph, integers


def graph_of(model: nn.Model) -> Graph:
    graph = Graph()
    name = graph.input("input", model.input_dtype, ("N", *model.input_shape))
    weights = model.layout.initial(np.random.default_rng(0))
    outputs = add_network(graph, model, weights, {"": name})[""]
    graph.output(outputs, "outputs", np.float32, ("N", *model.output_shape))
    graph.prune()
    return graph


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.nodes)


def test_there_is_no_transpose_between_convolutions_and_pools() -> None:
    layers = (
        *(nn.Conv2D(4, 3, use_bias=False), nn.BatchNorm(activation=nn.relu6)),
        nn.Residual(nn.DepthwiseConv2D(3), nn.BatchNorm(), nn.Conv2D(4, 1)),
        *(nn.MaxPool(3, 1, "same"), nn.GlobalAveragePool(), nn.Dense(3)),
    )
    graph = graph_of(nn.Model(nn.Sequential(*layers), (8, 8, 3), input_dtype=np.float32))
    assert operators(graph) == Counter(
        [
            *("Transpose", "Conv", "Clip", "Conv", "Conv", "Add", "MaxPool", "Transpose"),
            *("ReduceSum", "Reshape", "Mul", "MatMul", "Add", "Identity"),
        ]
    )


def test_transposes_of_the_network_itself_are_merged_with_those_of_maps() -> None:
    layers = nn.Conv2D(4, 1), nn.Lambda(lambda x: ad.transpose(x, (0, 3, 1, 2))), nn.Flatten()
    graph = graph_of(nn.Model(nn.Sequential(*layers), (2, 2, 3), input_dtype=np.float32))
    assert operators(graph) == Counter(["Transpose", "Conv", "Reshape", "Identity"])


def test_batch_norm_is_folded_and_arrays_have_the_names_of_parameters() -> None:
    layers = nn.Conv2D(4, 3, use_bias=False), nn.BatchNorm(), nn.Flatten(), nn.Dense(2)
    model = nn.Model(nn.Sequential(*layers), (4, 4, 3), input_dtype=np.float32)
    arrays = graph_of(model).initializers
    assert arrays["conv2d/kernel"].shape == (4, 3, 3, 3)
    assert arrays["dense/kernel"].shape == (64, 2)
    assert not any("batchnorm" in name for name in arrays)  # of zeros, so far
    assert "dense/bias" in arrays


def test_a_node_and_a_small_constant_are_there_once() -> None:
    graph = Graph()
    x = graph.input("x", np.float32, (2,))
    assert graph.add("Mul", x, integers(3)) == graph.add("Mul", x, integers(3))
    assert (len(graph.nodes), len(graph.initializers)) == (1, 1)
    assert graph.add("Mul", x, integers(4)) != graph.add("Mul", x, integers(3))


def test_no_two_tensors_have_one_name_whatever_parameters_are_called() -> None:
    graph = Graph("logits")
    x = graph.input("x", np.float32, (2,))
    names = [graph.constant(np.arange(100.0), name) for name in ("logits", "add_1", "logits")]
    names += [graph.add("Add", x, name) for name in names]
    assert len({"logits", "x", *names}) == 8


def test_weights_that_are_not_finite_are_exported_as_they_are() -> None:
    dense = nn.Dense(2, kernel_initializer=lambda _, shape: np.full(shape, np.nan, np.float32))
    model = nn.Model(nn.Sequential(nn.Rescale(), dense), (3,))
    assert np.isnan(graph_of(model).initializers["dense/kernel"]).all()


def test_what_no_output_needs_is_left_out() -> None:
    graph = Graph()
    x = graph.input("x", np.float32, (2,))
    graph.add("Add", x, integers(1))
    graph.output(x, "y", np.float32, (2,))
    graph.prune()
    assert [(node.op_type, *node.output) for node in graph.nodes] == [("Identity", "y")]
    assert not graph.initializers


def put_back(x: Expression) -> Expression:
    """An operation of gradients."""
    return ad.gradients(ad.sum(ad.max_pool(x, 2)), [x])[0]


def normalized_over_the_batch(x: Expression) -> Expression:
    ones = ad.constant(np.ones(x.shape[-1:], np.float32))
    return batch_normalize(x, ones, ones, ad.sqrt)[0]


def noisy(x: Expression) -> Expression:
    return x + ad.uniform(x.shape, np.random.default_rng(0))


def for_one_alone(x: Expression) -> Expression:
    return x if x.shape[0] == 1 else ad.reshape(x, (1, 4, 4, 3))


def other_for_many(x: Expression) -> Expression:
    return ad.tanh(x) if x.shape[0] > 12 else x


def without_the_last(x: Expression) -> Expression:
    return ad.concatenate([x[:-1], x[:1]])


REFUSED: dict[Callable[[Expression], Expression], str] = {
    put_back: "WindowMaximumGradient",
    noisy: "Uniform",
    normalized_over_the_batch: r"constant float32\[\]",
    for_one_alone: "11 inputs.*reshape",
    other_for_many: "11.*13",
    without_the_last: r"range\(0, 10\)",
    lambda x: x - ad.mean(x, 0, keepdims=True): r"constant float32\[\]",
    lambda x: ad.reshape(x[..., :0], (x.shape[0], 0)): r"float32\[11, 4, 4, 0\]",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_what_onnx_cannot_express_is_named(function: Callable[[Expression], Expression]) -> None:
    model = nn.Model(nn.Lambda(function), (4, 4, 3), input_dtype=np.float32)
    with pytest.raises(ExportError, match=REFUSED[function]):
        graph_of(model)
