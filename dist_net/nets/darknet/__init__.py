"""Darknet's configurations, weights files and published classifiers."""

# fmt: off
# isort: off
from dist_net.nets.darknet.configuration import (
    Configuration, Section, parse_configuration, read_configuration, write_configuration,
)
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import PUBLISHED, fetch_weights, imagenet_labels, published
from dist_net.nets.darknet.weights import read_weights, write_weights

__all__ = [
    "PUBLISHED", "Configuration", "DarknetNetwork", "Section", "fetch_weights",
    "imagenet_labels", "parse_configuration", "published", "read_configuration", "read_weights",
    "write_configuration", "write_weights",
]
