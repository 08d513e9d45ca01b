"""The features of a network: the input of its last layer, with the parameters that lead there."""

import numpy as np
import pytest

from dist_net.errors import ShapeError
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nn import (
    BatchNorm,
    Conv2D,
    Dense,
    Features,
    GlobalAveragePool,
    Model,
    Predictor,
    Rescale,
    Sequential,
    relu,
)
from naming import naming

NET = Sequential(
    Rescale(), Conv2D(4, 3), BatchNorm(), GlobalAveragePool(), Dense(6, relu), Dense(3)
)


def features_of(network, input_shape, features):
    """The whole model, that of its features, and weights of both by the same names."""
    whole = Model(network, input_shape)
    part = Model(Features(network), input_shape)
    assert part.classes == features
    weights = whole.layout.initial(np.random.default_rng(1))
    by_name = whole.layout.views(weights)
    shorter = np.concatenate([by_name[name].ravel() for name, _ in part.layout.shapes])
    return whole, weights, part, shorter


def test_features_are_what_the_last_layer_is_given():
    whole, weights, part, shorter = features_of(NET, (8, 8, 3), 6)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    last = whole.layout.views(weights)
    features = Predictor(part, shorter)(images)
    expected = Predictor(whole, weights)(images)
    by_hand = features @ last["dense_1/kernel"] + last["dense_1/bias"]
    np.testing.assert_allclose(by_hand, expected, rtol=1e-5, atol=1e-6)


def test_they_have_the_parameters_that_lead_to_them_and_no_other():
    whole, _, part, _ = features_of(NET, (8, 8, 3), 6)
    gone = {name for name, _ in whole.layout.shapes} - {name for name, _ in part.layout.shapes}
    assert gone == {"dense_1/kernel", "dense_1/bias"}
    assert part.layout.momenta == whole.layout.momenta


def test_of_a_map_they_are_the_mean_over_its_places():
    network = DarknetNetwork(
        parse_configuration(
            """
            [net]
            height=8
            width=8
            channels=3
            [convolutional]
            filters=5
            size=3
            stride=2
            pad=1
            activation=leaky
            [convolutional]
            filters=2
            size=1
            stride=1
            activation=linear
            [avgpool]
            [softmax]
            """,
            "tiny",
        )
    )
    features_of(Sequential(Rescale(), network), (8, 8, 3), 5)


def test_a_network_goes_on_from_them_and_is_trained_with_them():
    model = Model(Sequential(Features(NET), Dense(2)), (8, 8, 3))
    names = [name for name, _ in model.layout.shapes]
    assert "features/dense/kernel" in names
    assert "features/dense_1/kernel" not in names
    assert model.compile_training(4, np.random.default_rng(0)) is not None


def test_a_network_without_a_layer_to_take_away_is_refused():
    with pytest.raises(ShapeError, match=naming("Features")):
        Model(Features(Sequential(Rescale(), GlobalAveragePool())), (8, 8, 3))
