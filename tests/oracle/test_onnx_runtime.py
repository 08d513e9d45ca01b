"""Exported nets, run by ONNX Runtime, against our own answers: for 1 input and for 5."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

import dist_net
from benchmarks.seeded_weights import seeded_weights
from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff import Expression
from dist_net.autodiff.operations.normalization import ScaleAndShift
from dist_net.data import records
from dist_net.errors import ExportError, MissingExtraError
from dist_net.export.exported_model import ExportedModel
from dist_net.ground.vector import Vector
from dist_net.images.decoding import load_image
from dist_net.images.fitting import fit_image, letterbox
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import (
    Architecture,
    DarknetArchitecture,
    PublishedArchitecture,
    RecipeArchitecture,
)
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_layers import ACTIVATIONS
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import published
from dist_net.nets.recipes.image_recipe import ImageNet, small_base
from dist_net.nets.recipes.recipe import load_recipe, recipe_names
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nn.inference import Inference, prepare, softmax
from random_nets import models, naively, weights_of

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")

from dist_net.export.onnx.onnx_model import onnx_graph  # noqa: E402

PHOTOGRAPH = Path("/usr/share/darknet/data/dog.jpg")
TOLERANCE = 1e-5  # of the largest output


DIGITS = RecipeArchitecture("digits", "digits", ())


def exported(
    model: nn.Model,
    weights: Vector,
    images: bool = False,
    architecture: Architecture = DIGITS,
    **found: Any,
) -> Any:
    """A session of ONNX Runtime with the model."""
    names = tuple(map(str, range(model.classes)))
    whole = FoundModel(model, architecture, names, {}, "key", lambda: weights, **found)
    content = onnx_graph(ExportedModel("m", whole, weights, images)).model_bytes("0", {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options)


def answers(session: Any, inputs: NDArray[Any]) -> NDArray[np.float32]:
    (place,) = session.get_inputs()
    outputs: NDArray[np.float32] = session.run(None, {place.name: inputs})[0]
    return outputs


def require_close(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    tolerance = TOLERANCE * np.abs(wanted).max(initial=1e-30)
    np.testing.assert_allclose(given, wanted, rtol=0, atol=tolerance, strict=True)


def require_agreement(model: nn.Model, weights: Vector, low: float = 0, high: float = 9) -> None:
    """For 1 input and for 5, made of numbers between these."""
    session, random = exported(model, weights), np.random.default_rng(1)
    for count in (1, 5):
        inputs = random.uniform(low, high, (count, *model.input_shape)).astype(model.input_dtype)
        network = model.network(model.input(count), nn.Scope())
        (wanted,) = ad.evaluate([network], inputs=inputs, **model.layout.views(weights))
        require_close(answers(session, inputs), wanted)


def of_function(function: Callable[[Expression], Expression], *shape: int) -> nn.Model:
    """A model of one function, on float32 inputs."""
    return nn.Model(nn.Lambda(function), shape, input_dtype=np.float32)


@given(models())
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_nets_answer_alike(model: nn.Model) -> None:
    weights, random = weights_of(model), np.random.default_rng(1)
    session = exported(model, weights)
    for count in (1, 5):
        rows = random.integers(0, 9, (count, *model.input_shape)).astype(model.input_dtype)
        require_close(answers(session, rows), naively(model, weights, rows))


def powers(x: Expression) -> Expression:
    return ad.exp(-x) + ad.log(x + 1) + ad.sqrt(x) + ad.expm1(x * 1e-3)


def waves(x: Expression) -> Expression:
    return ad.sin(x) + ad.cos(x) * abs(x - 4.0) + ad.sign(x - 4.0) + ad.log1p(x)


def bends(x: Expression) -> Expression:
    x = x - 4.0
    return ad.gelu(x) + ad.gelu(x, approximate=True) * 2.0 + ad.silu(x) * 3.0 + ad.softplus(x)


def chosen(x: Expression) -> Expression:
    least = x.argmin(1)
    table = ad.constant(np.arange(20, dtype="f4").reshape(4, 5))
    return table[least][:, [0, -1, 3]] + x[:, least[0]][:, None] - x.min(1, keepdims=True)


def added_up(x: Expression) -> Expression:
    first, second = ad.split(x.cumsum(1), 2, 2)
    return ad.pad(ad.stack([first, second**1.5], 1), ((0, 0), (0, 0), (1, 2), (0, 1)))


def summed(x: Expression) -> Expression:
    return ad.einsum("nab,ncb->nac", x, x) + ad.einsum("nab,b->na", x, x[0, 0])[:, None]


def clipped(x: Expression) -> Expression:
    return ad.clip(x, 2, 5) + ad.leaky_relu(x - 4, 0.2) + ad.leaky_relu(x - 4, 0)


def compared(x: Expression) -> Expression:
    is_other = ad.logical_not(ad.equal(ad.argmax(x, 1), 2))
    is_between = ad.astype(ad.logical_and(x >= 2.0, x < 5.0), "f4")
    return ad.astype(is_other, "f4")[:, None] + is_between


def whole_numbers(x: Expression) -> Expression:
    return ad.astype(ad.astype(x, "i4") + ad.astype(x, "i4"), "f4")


def attention(x: Expression) -> Expression:
    return ad.softmax(x @ ad.matrix_transpose(x)) @ x


def convolved_by_the_first(x: Expression) -> Expression:
    """By filters that are computed from the inputs."""
    filters = ad.reshape(x[0, :2, :2], (2, 2, 3, 1))
    return ad.conv2d(x, filters, padding="valid")


def row_beside(x: Expression) -> Expression:
    """A constant with a row for each input."""
    return ad.concatenate([x, ad.constant(np.full((x.shape[0], 1), 2, np.float32))], 1)


def constant_repeated(x: Expression) -> Expression:
    return x + ad.sum(ad.broadcast_to(ad.constant(np.ones(4, "f4")), (2, *x.shape)), 0)


def scaled(x: Expression) -> Expression:
    rows = ad.reshape(x, (-1, 4))
    scaled = ad.apply(ScaleAndShift(), x[0, 0], rows, ad.constant(np.arange(4, dtype="f4")))
    return ad.relu(ad.reshape(scaled, x.shape) - 5.0) + ad.relu(ad.reshape(scaled, x.shape) - x)


def turned(x: Expression) -> Expression:
    return ad.transpose(ad.max_pool(x, 2, 1), (0, 2, 1, 3))[:, ::-1, ..., None]


def pooled(x: Expression) -> Expression:
    maxima = ad.max_pool(x, (3, 2), 2, ((1, 1), (0, 1)))
    return ad.concatenate([ad.average_pool(x, 3, 2, "same"), maxima], 3)


FUNCTIONS: dict[str, tuple[Callable[[Expression], Expression], tuple[int, ...]]] = {
    "arithmetic": (lambda x: (1.5 - x) * x / (x + 0.1) - ad.square(x), (4,)),
    "extremes": (lambda x: ad.maximum(x, 4.0) + ad.minimum(x, ad.max(x, 1, keepdims=True)), (4,)),
    "where": (lambda x: ad.where(x > 4.0, x, 0.0) + ad.where(x <= 3.0, x, 2.0), (4,)),
    "sigmoids": (lambda x: ad.sigmoid(x) + ad.tanh(x), (4,)),
    "logarithms": (ad.log_softmax, (4,)),
    "softmax": (ad.softmax, (3, 4)),
    "means": (lambda x: ad.mean(x, (1, 3)) + ad.sum(x, (1, 2))[:, :1], (2, 3, 4)),
    "one-hot": (lambda x: nn.losses.one_hot(ad.argmax(x, 1), 4), (4,)),
    "repeated": (lambda x: ad.broadcast_to(x[:, None], (x.shape[0], 3, 4)), (4,)),
    "repeated for each input": (lambda x: ad.broadcast_to(ad.max(x), x.shape), (4,)),
    "merged axes": (lambda x: ad.reshape(ad.reshape(x, (-1, 4)) * 2.0, x.shape), (2, 3, 4)),
    "pools one way": (lambda x: ad.max_pool(ad.average_pool(x, (1, 2)) * 3.0, (2, 1)), (6, 6, 3)),
    **{
        function.__name__: (function, shape)
        for function, shape in [
            *((powers, (4,)), (clipped, (4,)), (compared, (4,)), (whole_numbers, (4,))),
            *((waves, (4,)), (bends, (64,)), (chosen, (4,))),
            *((added_up, (3, 4)), (summed, (3, 4))),
            *((row_beside, (4,)), (constant_repeated, (4,))),
            *((attention, (3, 4)), (scaled, (3, 4)), (convolved_by_the_first, (4, 4, 3))),
            *((turned, (4, 3, 2)), (pooled, (6, 5, 3))),
        ]
    },
}


@pytest.mark.main_path
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_answers_alike(name: str) -> None:
    function, shape = FUNCTIONS[name]
    model = of_function(function, *shape)
    require_agreement(model, np.empty(0, np.float32))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_darknets_answers_alike(name: str) -> None:
    model = of_function(ACTIVATIONS[name], 64)
    require_agreement(model, np.empty(0, np.float32), -6, 6)


@pytest.mark.parametrize("name", recipe_names())
def test_a_built_in_recipe_answers_alike(name: str) -> None:
    recipe = load_recipe(name).recipe
    require_agreement(recipe.model, recipe.initial_weights(0), high=256)


def test_a_net_for_a_folder_of_images_answers_alike() -> None:
    model = nn.Model(ImageNet(small_base(32), 3), (32, 32, 3))
    require_agreement(model, weights_of(model), high=256)


@pytest.mark.parametrize("layer", [nn.GRU(4), nn.LSTM(4, return_sequences=True)])
def test_a_recurrent_layer_answers_alike(layer: nn.Layer) -> None:
    model = nn.Model(nn.Sequential(layer, nn.Dense(3)), (7, 5), input_dtype=np.float32)
    require_agreement(model, weights_of(model), -1, 1)


EVERY_LAYER = """
[net]
height=21
width=21
channels=3
[crop]
crop_height=20
crop_width=20
[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky
[convolutional]
filters=8
groups=4
size=3
stride=2
pad=1
activation=relu
[shortcut]
from=-2
activation=elu
[maxpool]
size=3
stride=2
[dropout]
[route]
layers=-1,-2
[convolutional]
batch_normalize=1
filters=4
size=1
stride=1
activation=selu
[shortcut]
from=-5
activation=leaky
[connected]
batch_normalize=1
output=12
activation=plse
[connected]
output=12
activation=linear
[softmax]
groups=3
temperature=2
[cost]
"""


def test_every_layer_of_darknets_answers_alike() -> None:
    require_network(DarknetNetwork(parse_configuration(EVERY_LAYER, "every layer")))


def test_a_published_net_answers_alike() -> None:
    require_network(DarknetNetwork(published("darknet").configuration(64)))


def require_network(network: DarknetNetwork) -> None:
    model = nn.Model(network, network.input_shape, input_dtype=np.float32)
    require_agreement(model, seeded_weights(network, 0), high=1)


@pytest.fixture(scope="module")
def lite0_weights() -> Vector:
    try:
        return lite0.read_weights()
    except MissingExtraError:
        pytest.skip("the weights are not installed (the extra `pretrained`)")


@pytest.mark.skipif(not PHOTOGRAPH.exists(), reason="Debian's package darknet is not installed")
def test_lite0_answers_alike_for_a_photograph(lite0_weights: Vector) -> None:
    fitted = fit_image(PHOTOGRAPH, lite0.INPUT_SHAPE, lite0.FITTING)
    batch = np.stack([fitted, fitted[::-1], fitted[:, ::-1], 255 - fitted, fitted // 2])
    session = exported(lite0.model(), lite0_weights, has_logits=True)
    ours = Inference(lite0.model(), prepare(lite0.model(), lite0_weights), compiled=False)
    wanted = ours(batch)
    ours.close()
    require_close(answers(session, batch), wanted)
    require_close(answers(session, batch[:1]), wanted[:1])
    options = {"has_logits": True, "fitting": lite0.FITTING}
    options["architecture"] = PublishedArchitecture(lite0.NAME)
    whole = exported(lite0.model(), lite0_weights, images=True, **options)
    photograph = load_image(PHOTOGRAPH)[np.newaxis]
    np.testing.assert_allclose(answers(whole, photograph), softmax(wanted[:1]), rtol=0, atol=2e-3)


SIZES = [(300, 400), (37, 41), (28, 32), (9, 7), (1, 1), (90, 60)]


@pytest.mark.parametrize("shape", [(28, 32, 3), (28, 32), (28, 32, 1)])
@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch", "imagenet", "exact"])
def test_images_are_fitted_alike(fitting: str, shape: tuple[int, ...]) -> None:
    """To 2 of 255, on average to a quarter of one."""
    model = nn.Model(nn.Sequential(nn.Rescale(1.0), nn.Flatten()), shape)
    session = exported(model, np.empty(0, np.float32), images=True, fitting=fitting)
    random = np.random.default_rng(0)
    for size in SIZES if fitting != "exact" else [shape[:2]]:
        images = random.integers(0, 256, (2, *size, 3), np.uint8)
        wanted = np.stack([fit_image(each, shape, fitting) for each in images])
        away = np.abs(answers(session, images) - wanted.reshape(2, -1))
        assert away.max() <= 2
        assert away.mean() < 0.25


def test_images_are_fitted_alike_for_darknets_nets() -> None:
    model = nn.Model(nn.Flatten(), (28, 32, 3), input_dtype=np.float32)
    options = {"fitting": "pad", "architecture": DarknetArchitecture("a net")}
    session = exported(model, np.empty(0, np.float32), images=True, **options)
    random = np.random.default_rng(0)
    for size in SIZES:
        images = random.integers(0, 256, (2, *size, 3), np.uint8)
        wanted = np.stack([letterbox(each, 28, 32) for each in images])
        np.testing.assert_allclose(
            answers(session, images), wanted.reshape(2, -1), rtol=0, atol=1e-4
        )


CODE = nn.Sequential(nn.Field("code"), nn.Lambda(lambda x: nn.one_hot(x, 6)))
X = nn.Field("x")
RECORDS: dict[str, tuple[nn.Layer, list[str]]] = {
    "names of their own": (
        nn.Sequential(
            nn.Concatenate(CODE, X),
            nn.NamedOutputs({"two": nn.Dense(2), "three": nn.Dense(3, "tanh")}),
        ),
        ["two", "three"],
    ),
    "one tensor with two names": (
        nn.Sequential(
            nn.NamedOutputs({"sequence": nn.Field("steps")}), nn.LSTM(3, False, return_state=True)
        ),
        ["output", "state", "cell"],
    ),
    "names of inputs": (
        nn.NamedOutputs({"x": nn.Sequential(X, nn.Dense(2)), "steps": nn.Field("steps")}),
        ["x_output", "steps_output"],
    ),
    "each other's names": (
        nn.NamedOutputs({"code": X, "x": CODE, "x_output": X}),
        ["code_output", "x_output_1", "x_output"],
    ),
    "a name of the graph": (
        nn.Sequential(X, nn.NamedOutputs({"dense/kernel": nn.Dense(2), "matmul": nn.Dense(2)})),
        ["dense/kernel", "matmul"],
    ),
}


@pytest.mark.parametrize(("network", "names"), RECORDS.values(), ids=RECORDS)
def test_several_inputs_and_outputs_have_their_names(
    network: nn.Layer, names: list[str], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    numbers = {"x": (6, 3), "steps": (6, 4, 3)}
    inputs = records(
        code=np.arange(6, dtype=np.uint8),
        **{name: random.normal(size=shape).astype("f4") for name, shape in numbers.items()},
    )
    model = nn.Model(network, (), lambda y, _: y[y.dtype.names[0]], inputs.dtype)
    model.weights = model.layout.initial(random)
    dist_net.export_model(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [each.name for each in session.get_outputs()] == names
    found = session.run(None, {name: inputs[name] for name in inputs.dtype.names})
    wanted = model.predict(inputs)
    for name, output in zip(wanted.dtype.names, found, strict=True):
        require_close(output, wanted[name])


def test_a_stateful_layer_is_exported(tmp_path: Path) -> None:
    """The states are inputs and outputs: the answer to a series in parts is that to the whole."""
    layer = nn.GRU(8, return_sequences=True, return_state=True)
    model = nn.Model(layer, (), "mse", [("sequence", "f4", (4, 3)), ("state", "f4", 8)])
    model.weights = model.layout.initial(np.random.default_rng(0))
    dist_net.export_model(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    state = np.zeros((2, 8), np.float32)
    series = np.random.default_rng(1).normal(size=(2, 12, 3)).astype(np.float32)
    for part in np.split(series, 3, axis=1):
        wanted = model.predict(records(sequence=part, state=state))
        output, state = session.run(["output", "state_output"], {"sequence": part, "state": state})
        require_close(output, wanted["output"])
        require_close(state, wanted["state"])


def statistics(x: Expression) -> Expression:
    shares = ad.softmax(x)
    parts = [ad.var(x, 1), ad.std(x, 1, ddof=1), ad.prod(shares, 1), ad.max(shares, 1)]
    return ad.concatenate([*parts, ad.einsum("n...c,n...c->nc", x, shares)], -1)


SEQUENCES = {
    "attention": nn.MultiHeadAttention(2),
    "causal attention": nn.MultiHeadAttention(2, causal=True),
    "recurrent": nn.Bidirectional(nn.LSTM(3, return_sequences=True)),
    "states": nn.Sequential(nn.GRU(3, return_state=True), nn.Field("state")),
    "mean": nn.GlobalAveragePool(),
}


@pytest.mark.parametrize("layer", SEQUENCES.values(), ids=SEQUENCES)
def test_masks_are_inputs(layer: nn.Layer, tmp_path: Path) -> None:
    """Of bools, beside the sequence."""
    first = "query" if isinstance(layer, nn.MultiHeadAttention) else "sequence"
    random = np.random.default_rng(0)
    inputs = records(
        **{first: random.normal(size=(5, 6, 4)).astype(np.float32)},
        mask=np.arange(6) < np.array([6, 1, 3, 0, 5])[:, None],
    )
    model = nn.Model(layer, (), lambda y, _: y.sum(), inputs.dtype)
    model.weights = model.layout.initial(random)
    dist_net.export_model(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 5):
        given = {name: inputs[name][:count] for name in (first, "mask")}
        require_close(session.run(None, given)[0], model.predict(inputs[:count]))


def test_layers_along_t_and_statistics_are_exported() -> None:
    layers = (
        *(nn.Conv1D(8, 3, 2, activation="gelu"), nn.GroupNorm(2), nn.MaxPool1D(2, 1)),
        *(nn.AveragePool1D(3, 1, "same"), nn.Lambda(statistics), nn.Dense(3)),
    )
    model = nn.Model(nn.Sequential(*layers), (20, 4), input_dtype=np.float32)
    require_agreement(model, weights_of(model))


def test_an_order_is_not_exported() -> None:
    model = nn.Model(nn.Lambda(ad.sort), (4,), input_dtype=np.float32)
    with pytest.raises(ExportError, match="sort and top_k"):
        exported(model, np.empty(0, np.float32))
