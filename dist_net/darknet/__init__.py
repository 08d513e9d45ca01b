"""Darknet's formats and nets: configurations, weights, labels, pictures, published classifiers."""

from dist_net.darknet.configuration import (
    Configuration,
    Section,
    parse_configuration,
    read_configuration,
    write_configuration,
)
from dist_net.darknet.labels import imagenet_labels, read_labels
from dist_net.darknet.network import DarknetNetwork
from dist_net.darknet.published import PUBLISHED, fetch_weights, published
from dist_net.darknet.weights import read_weights, write_weights
from dist_net.pictures.decoding import letterbox, load_image
from dist_net.pictures.predictions import Prediction

__all__ = [
    "PUBLISHED",
    "Configuration",
    "DarknetNetwork",
    "Prediction",
    "Section",
    "fetch_weights",
    "imagenet_labels",
    "letterbox",
    "load_image",
    "parse_configuration",
    "published",
    "read_configuration",
    "read_labels",
    "read_weights",
    "write_configuration",
    "write_weights",
]
