"""Networks of a .cfg file: each layer against its definition, written out in plain loops."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from benchmarks.seeded_weights import seeded_weights
from dist_net import autodiff as ad
from dist_net.errors import ModelFileError, ShapeError
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_layers import ACTIVATIONS
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import published
from dist_net.nn import Model, Scope
from float64 import in_float64
from naming import naming
from selection import few

RNG = np.random.default_rng(11)
IMAGES = RNG.random((2, 6, 7, 3)).astype(np.float32)
NET = "[net]\nheight=6\nwidth=7\nchannels=3\n"
CONV = "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=linear\n"

Values = np.ndarray


def network_of(layers: str, logits: bool = False) -> DarknetNetwork:
    return DarknetNetwork(parse_configuration(NET + layers, "a.cfg"), logits)


def maps(layers: str, images: Values = IMAGES, seed: int = 1) -> list[Values]:
    """The output of every layer, with seeded weights."""
    network = network_of(layers)
    x = ad.variable("inputs", images.shape)
    views = network.layout.views(seeded_weights(network, seed))
    plan = ad.compile(network.outputs(x, Scope()))
    return list(plan.bind({"inputs": images, **views}).run())


def answers(network: DarknetNetwork, vector: Values, images: Values = IMAGES) -> Values:
    x = ad.variable("inputs", images.shape)
    return ad.evaluate([network(x, Scope())], inputs=images, **network.layout.views(vector))[0]


def test_layers_are_numbered_and_know_their_shapes() -> None:
    network = network_of(f"{CONV}[maxpool]\nstride=2\n[avgpool]\n[softmax]\n")
    assert network.input_shape == (6, 7, 3)
    assert [(each.name, each.input_shape, each.output_shape) for each in network.layers] == [
        ("000_convolutional", (1, 6, 7, 3), (1, 6, 7, 4)),
        ("001_maxpool", (1, 6, 7, 4), (1, 3, 4, 4)),
        ("002_avgpool", (1, 3, 4, 4), (1, 1, 1, 4)),
        ("003_softmax", (1, 1, 1, 4), (1, 1, 1, 4)),
    ]
    assert [each.name for each in network.layout.parameters] == [
        "000_convolutional/kernel",
        "000_convolutional/bias",
    ]


def test_the_layout_is_that_of_a_model_of_the_network() -> None:
    network = network_of(CONV + "batch_normalize=1\n[connected]\noutput=3\nbatch_normalize=1\n")
    assert Model(network, (6, 7, 3), input_dtype="float32").layout.shapes == network.layout.shapes
    assert [each.name for each in network.layout.buffers] == [
        "000_convolutional/mean",
        "000_convolutional/variance",
        "001_connected/mean",
        "001_connected/variance",
    ]


def test_batch_norm_divides_by_the_deviation_plus_epsilon() -> None:
    network = network_of("[convolutional]\nfilters=2\nbatch_normalize=1\nactivation=leaky\n")
    vector = seeded_weights(network, 0)
    views = network.layout.views(vector)
    kernel, gamma, beta, mean, variance = (view.astype(np.float64) for view in views.values())
    views["000_convolutional/variance"][0] = variance[0] = 1e-12  # where the epsilon shows
    raw = (IMAGES @ kernel[0, 0] - mean) / (np.sqrt(variance) + 1e-6) * gamma + beta
    expected = np.where(raw > 0, raw, 0.1 * raw).transpose(0, 3, 1, 2).reshape(2, -1)
    np.testing.assert_allclose(answers(network, vector), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(2, 2, None), (2, 1, None), (3, 2, None), (3, 2, 0), (3, 1, 1), (5, 3, None), (2, 2, 2)],
)
def test_maxpool_has_the_smaller_half_of_its_padding_above(
    size: int, stride: int, padding: int | None
) -> None:
    given = "" if padding is None else f"padding={padding}\n"
    (found,) = maps(f"[maxpool]\nsize={size}\nstride={stride}\n{given}")
    padding = size - 1 if padding is None else padding
    expected = np.full(
        (2, (6 + padding - size) // stride + 1, (7 + padding - size) // stride + 1, 3), 0.0
    )
    for _, row, column, _ in np.ndindex(expected.shape):
        top, left = row * stride - padding // 2, column * stride - padding // 2
        window = IMAGES[:, max(top, 0) : top + size, max(left, 0) : left + size]
        expected[:, row, column] = window.max(axis=(1, 2))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("reduced", "channels"), [("2", 2), ("2", 5), ("3", 4), ("1", 2)])
@pytest.mark.parametrize("larger_first", [True, False])
def test_a_shortcut_adds_what_both_maps_have(
    reduced: str, channels: int, larger_first: bool
) -> None:
    pool = f"[maxpool]\nsize={reduced}\nstride={reduced}\npadding=0\n"
    small = f"{pool}{CONV.replace('filters=4', f'filters={channels}')}"
    crop = "[crop]\ncrop_height=6\ncrop_width=6\n"
    layers = f"{crop}{CONV}{small}"
    layers += (
        "[shortcut]\nfrom=1\nactivation=leaky\n"
        if larger_first
        else "[route]\nlayers=1\n[shortcut]\nfrom=3\nactivation=leaky\n"
    )
    found = maps(layers)
    x, added = (found[3], found[1]) if larger_first else (found[1], found[3])
    expected = x.copy()
    every, apart = max(added.shape[1] // x.shape[1], 1), max(x.shape[1] // added.shape[1], 1)
    for row in range(min(added.shape[1], x.shape[1])):
        for column in range(min(added.shape[2], x.shape[2])):
            shared = min(added.shape[3], x.shape[3])
            expected[:, row * apart, column * apart, :shared] += added[
                :, row * every, column * every, :shared
            ]
    np.testing.assert_array_equal(found[-1], np.maximum(expected, expected * np.float32(0.1)))


def test_a_shortcut_weighs_its_inputs() -> None:
    first, second, found = maps(f"{CONV}{CONV}[shortcut]\nfrom=-2\nalpha=2\nbeta=-.5\n")
    np.testing.assert_allclose(found, 2 * second - 0.5 * first, rtol=1e-6, atol=1e-6)


def test_a_route_joins_channels() -> None:
    first, second, _, joined, one = maps(
        f"{CONV}{CONV}[dropout]\n[route]\nlayers=-2,0\n[route]\nlayers=1\n"
    )
    assert np.array_equal(joined, np.concatenate([second, first], axis=3))
    assert np.array_equal(one, second)


def test_a_crop_takes_the_middle_and_spreads_it() -> None:
    crop = "[crop]\ncrop_height=3\ncrop_width=4\n"
    (spread,) = maps(crop)
    (plain,) = maps(crop + "noadjust=1\n")
    assert np.array_equal(plain, IMAGES[:, 1:4, 1:5])
    np.testing.assert_allclose(spread, 2 * IMAGES[:, 1:4, 1:5] - 1, rtol=1e-6, atol=1e-6)


def test_outputs_come_channel_by_channel() -> None:
    network = network_of("[dropout]\n")
    found = answers(network, np.empty(0, np.float32))
    assert np.array_equal(found, IMAGES.transpose(0, 3, 1, 2).reshape(2, -1))


def test_a_softmax_is_over_each_group_at_its_temperature() -> None:
    network = network_of("[dropout]\n[softmax]\ngroups=3\ntemperature=.5\n")
    found = answers(network, np.empty(0, np.float32))
    grouped = np.exp(2 * IMAGES.transpose(0, 3, 1, 2).reshape(2, 3, -1).astype(np.float64))
    expected = grouped / grouped.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected.reshape(2, -1), rtol=1e-5)


@pytest.mark.parametrize("tail", ["[softmax]\n", "[softmax]\n[cost]\n", ""])
def test_logits_are_what_the_softmax_is_applied_to(tail: str) -> None:
    layers = f"{CONV}[avgpool]\n"
    vector = seeded_weights(network_of(layers), 2)
    logits = answers(network_of(layers + tail, logits=True), vector)
    np.testing.assert_array_equal(logits, answers(network_of(layers), vector))
    if tail:
        probabilities = answers(network_of(layers + tail), vector)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(
            np.log(probabilities[0] / probabilities[0, 0]), logits[0] - logits[0, 0], atol=1e-5
        )


def test_activations_are_what_darknet_calls_them() -> None:
    x = np.array([-5, -4, -2, -0.5, 0, 0.5, 0.9, 2, 4, 5], np.float32)
    wide = x.astype(np.float64)
    below = np.exp(np.minimum(wide, 0)) - 1
    expected = {
        "elu": np.where(x < 0, below, x),
        "hardtan": np.clip(x, -1, 1),
        "leaky": np.where(x > 0, x, 0.1 * x),
        "lhtan": np.where(x < 0, 0.001 * x, np.where(x > 1, 0.001 * (x - 1) + 1, x)),
        "linear": x,
        "loggy": 2 / (1 + np.exp(-wide)) - 1,
        "logistic": 1 / (1 + np.exp(-wide)),
        "plse": np.select([x < -4, x > 4], [0.01 * (x + 4), 0.01 * (x - 4) + 1], 0.125 * x + 0.5),
        "ramp": np.maximum(x, 0) + 0.1 * x,
        "relie": np.where(x > 0, x, 0.01 * x),
        "relu": np.maximum(x, 0),
        "selu": 1.0507 * np.where(x < 0, 1.6732 * below, x),
        "tanh": np.tanh(wide),
    }
    assert ACTIVATIONS.keys() == expected.keys()
    for name, activation in ACTIVATIONS.items():
        (found,) = ad.evaluate([activation(ad.variable("x", x.shape))], x=x)
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_is_exponential_below_0_keeps_its_digits_there() -> None:
    x = np.array([-1e-9], np.float32)
    for name, scale in (("elu", 1), ("selu", 1.0507 * 1.6732)):
        (found,) = ad.evaluate([ACTIVATIONS[name](ad.variable("x", x.shape))], x=x)
        np.testing.assert_allclose(found, x * scale, rtol=1e-6)


def test_gradients_flow_and_averages_move_in_training() -> None:
    layers = (
        f"[crop]\ncrop_height=6\ncrop_width=6\n{CONV}batch_normalize=1\n[maxpool]\nsize=2\n"
        f"stride=2\n{CONV}[route]\nlayers=-1,-2\n[dropout]\n[shortcut]\nfrom=1\n[connected]\noutput=5\nbatch_normalize=1\n"
        f"activation=relu\n[connected]\noutput=3\nactivation=linear\n[softmax]\n"
    )
    network = network_of(layers, logits=True)
    model = Model(network, network.input_shape, input_dtype=np.float32)
    plan = model.compile_training(2, np.random.default_rng(0))
    found = np.zeros(model.layout.size, np.float32)
    labels = np.array([0, 2], np.uint8)
    weights = seeded_weights(network, 1)
    model.bind_training(plan, IMAGES, labels, weights, found).run()
    for name, view in model.layout.views(found).items():
        assert np.isfinite(view).all()
        assert np.abs(view).max() > 0, name
    assert set(model.layout.momenta) == {0.99}


@pytest.mark.parametrize(
    ("layers", "line", "values"),
    [
        ("[conv]\nsize=9\nactivation=linear", 5, [(9, 9)]),
        ("[conv]\nactivation=lekay", 6, ["activation=lekay", "elu"]),
        ("[conv]\nfilters=4\ngroups=3\nactivation=linear", 5, ["groups"]),
        ("[conv]\nfilters=0", 6, ["filters=0", 1]),
        ("[conv]\nsize=two", 6, ["size=two"]),
        ("[dropout]\nprobability=1", 6, ["probability=1.0", 1]),
        ("[softmax]\ntemperature=0", 6, ["temperature=0"]),
        ("[softmax]\ngroups=4", 5, ["groups=4", 126]),
        ("[crop]\ncrop_height=7\ncrop_width=1", 5, ["7 x 1", "6 x 7"]),
        ("[shortcut]\nfrom=-1", 6, ["from=-1"]),
        ("[avg]\n[shortcut]\nfrom=-2", 7, ["from=-2", "-1 to -1", "0 to 0", "layer 1"]),
        ("[avg]\n[shortcut]\nfrom=1", 7, ["from=1"]),
        ("[avg]\n[shortcut]\nactivation=linear", 6, ["option", "from"]),
        ("[avg]\n[route]\nlayers=-1,5", 7, ["layers=5"]),
        ("[avg]\n[route]\n", 6, ["layers="]),
        (
            "[dropout]\n[max]\nstride=2\n[route]\nlayers=0,1",
            8,
            [[0, 1], "6 x 7", "3 x 4"],
        ),
        (
            "[dropout]\n[conv]\nsize=3\npadding=0\nactivation=linear\n[shortcut]\nfrom=0\nalpha=2",
            10,
            ["alpha=2.0", "4 x 5 x 1", "6 x 7 x 3"],
        ),
        ("[dropout]\n[net]", 6, ["[net]"]),
    ],
)
def test_what_does_not_fit_is_refused_by_line(layers: str, line: int, values: list[object]) -> None:
    with pytest.raises(ModelFileError, match=naming(*values)) as caught:
        network_of(layers)
    assert str(caught.value).startswith(f"a.cfg:{line}: ")


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("height=4\nwidth=4", "height 4.*width 4.*0 channels"),
        ("height=4\nwidth=4\nchannels=3\ninputs=47", "inputs=47.*48"),
    ],
)
def test_a_network_says_what_it_is_given(net: str, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        DarknetNetwork(parse_configuration(f"[net]\n{net}\n[avgpool]", "a.cfg"))


def test_inputs_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=naming("a.cfg", (2, 7, 6, 3), "(N, 6, 7, 3)")):
        network_of(CONV)(ad.variable("x", (2, 7, 6, 3)), Scope())


def layer_errors(
    network: DarknetNetwork,
    weights: Values,
    images: Values,
    compile: Callable[[Sequence[ad.Expression]], ad.Plan] = ad.compile,
) -> dict[str, float]:
    """How far each layer's float32 output is from float64, by the layer's name.

    The largest difference between what ``compile`` makes of the graph and its float64 values, over
    the largest of those values. Each layer's error contains that of the layers before.
    """
    x = ad.variable("inputs", images.shape)
    outputs = network.outputs(x, Scope())
    arrays: dict[str, ad.Array] = {"inputs": images, **network.layout.views(weights)}
    in_double = {name: array.astype(np.float64) for name, array in arrays.items()}
    exact = ad.compile(in_float64(outputs)).bind(in_double).run()
    found = compile(outputs).bind(arrays).run()
    return {
        layer.name: float(np.abs(np.subtract(values, truth)).max() / np.abs(truth).max())
        for layer, values, truth in zip(network.layers, found, exact, strict=True)
    }


@pytest.mark.parametrize("name", few(["resnext50", "darknet53", "densenet201"]))
def test_float32_stays_within_a_hundred_thousandth_of_float64(name: str) -> None:
    network = DarknetNetwork(published(name).configuration(64))
    vector = seeded_weights(network, 6)
    images = np.random.default_rng(7).random((2, 64, 64, 3), np.float32)
    errors = layer_errors(network, vector, images)
    assert list(errors) == [layer.name for layer in network.layers]
    assert 1e-8 < max(errors.values()) < 1e-5
