"""Layers, activations, initializers, losses and models, as functions of expressions."""

from dist_net.autodiff import cross_entropy_of_logits, leaky_relu, record, sigmoid, softmax, tanh
from dist_net.nn.layers import (
    AveragePool,
    BatchNorm,
    Concatenate,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Features,
    Field,
    Flatten,
    FrozenBatchNorm,
    GlobalAveragePool,
    Lambda,
    Layer,
    MaxPool,
    NamedOutputs,
    Rescale,
    Residual,
    Sequential,
    linear,
    relu,
    relu6,
)
from dist_net.nn.losses import (
    cross_entropy_of_probabilities,
    mean_squared_error,
    one_hot,
)
from dist_net.nn.model import Model, Predictor
from dist_net.nn.parameters import (
    Buffer,
    Layout,
    Parameter,
    Scope,
    copy_of,
    glorot_uniform,
    he_normal,
    he_uniform,
    ones,
    zeros,
)
