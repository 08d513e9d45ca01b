"""Random weights for comparisons: the same for the same seed, and well conditioned."""

import numpy as np
import pytest

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import compile, variable
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import published
from dist_net.nn import Scope
from selection import few

IMAGES = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)


def test_a_seed_says_which_weights() -> None:
    network = DarknetNetwork(published("darknet").configuration(64))
    assert np.array_equal(seeded_weights(network, 1), seeded_weights(network, 1))
    assert not np.array_equal(seeded_weights(network, 1), seeded_weights(network, 2))


@pytest.mark.parametrize("name", few(["alexnet", "darknet53"]))
def test_activations_are_of_order_1_and_the_output_is_not_saturated(name: str) -> None:
    size = 99 if name == "alexnet" else 64
    network = DarknetNetwork(published(name).configuration(size))
    vector = seeded_weights(network, 5)
    images = np.resize(IMAGES, (2, size, size, 3))
    x = variable("inputs", images.shape)
    outputs = network.outputs(x, Scope())
    views = network.layout.views(vector)
    found = compile(outputs).bind({"inputs": images, **views}).run()
    for layer, values in zip(network.layers, found, strict=True):
        if layer.section.kind in ("convolutional", "shortcut", "route"):
            assert 0.1 < np.sqrt(np.square(values, dtype=np.float64).mean()) < 10, layer.name
    logits = np.log(found[-1].reshape(2, -1))
    assert ((logits.std(axis=1) > 1.7) & (logits.std(axis=1) < 4)).all()  # 2.6 for its image
    assert ((logits.max(axis=1) > np.log(0.01)) & (logits.max(axis=1) < np.log(0.8))).all()
    variances = [view for each, view in views.items() if each.endswith("/variance")]
    assert all(((view >= 0.8) & (view <= 1.25)).all() for view in variances)


def test_a_network_without_softmax_or_weights_is_served_too() -> None:
    net = "[net]\nheight=4\nwidth=4\nchannels=3\n"
    assert seeded_weights(DarknetNetwork(parse_configuration(net + "[avgpool]", "a")), 0).size == 0
    conv = "[convolutional]\nfilters=2\nactivation=linear\n"
    only = DarknetNetwork(parse_configuration(net + conv + "[softmax]\n[cost]", "a"))
    assert np.isfinite(seeded_weights(only, 0)).all()
    single = conv.replace("filters=2", "filters=1") + "[avgpool]\n[softmax]"
    one = DarknetNetwork(parse_configuration(net + single, "a"))
    assert np.isfinite(seeded_weights(one, 0)).all()
