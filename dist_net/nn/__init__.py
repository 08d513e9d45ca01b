"""Layers, activations, initializers, losses and models, as functions of expressions."""

from dist_net.nn.activations import leaky_relu, linear, relu, relu6, sigmoid, softmax, tanh
from dist_net.nn.features import Features
from dist_net.nn.initializers import (
    copy_of,
    glorot_uniform,
    he_normal,
    he_uniform,
    ones,
    zeros,
)
from dist_net.nn.layers import (
    AveragePool,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    FrozenBatchNorm,
    GlobalAveragePool,
    Lambda,
    Layer,
    MaxPool,
    Rescale,
    Residual,
    Sequential,
)
from dist_net.nn.losses import (
    cross_entropy_of_logits,
    cross_entropy_of_probabilities,
    mean_squared_error,
    one_hot,
)
from dist_net.nn.model import Model, Predictor
from dist_net.nn.parameters import Buffer, Layout, Parameter, Scope

__all__ = [
    "AveragePool",
    "BatchNorm",
    "Buffer",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Features",
    "Flatten",
    "FrozenBatchNorm",
    "GlobalAveragePool",
    "Lambda",
    "Layer",
    "Layout",
    "MaxPool",
    "Model",
    "Parameter",
    "Predictor",
    "Rescale",
    "Residual",
    "Scope",
    "Sequential",
    "copy_of",
    "cross_entropy_of_logits",
    "cross_entropy_of_probabilities",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "leaky_relu",
    "linear",
    "mean_squared_error",
    "one_hot",
    "ones",
    "relu",
    "relu6",
    "sigmoid",
    "softmax",
    "tanh",
    "zeros",
]
