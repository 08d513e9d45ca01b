"""Darknet's configurations, weights files and published classifiers."""

from dist_net.darknet.configuration import (
    Configuration,
    Section,
    parse_configuration,
    read_configuration,
    write_configuration,
)
from dist_net.darknet.network import DarknetNetwork
from dist_net.darknet.published import PUBLISHED, fetch_weights, imagenet_labels, published
from dist_net.darknet.weights import read_weights, write_weights

__all__ = [
    "PUBLISHED",
    "Configuration",
    "DarknetNetwork",
    "Section",
    "fetch_weights",
    "imagenet_labels",
    "parse_configuration",
    "published",
    "read_configuration",
    "read_weights",
    "write_configuration",
    "write_weights",
]
