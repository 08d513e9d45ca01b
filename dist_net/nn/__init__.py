"""Layers, activations, initializers, losses and models, as functions of expressions."""

# fmt: off
# isort: off
from typing import TYPE_CHECKING
from dist_net.autodiff import (
    cross_entropy_of_logits, gelu, leaky_relu, record, relu, sigmoid, silu, softmax, softplus, tanh,
)
from dist_net.nn.layers import (
    AveragePool, BatchNorm, Concatenate, Conv2D, Conv2DTranspose, Dense, DepthwiseConv2D, Dropout,
    Embedding, Features, Field, Flatten, Frozen, FrozenBatchNorm, GlobalAveragePool,
    GlobalMaxPool, GroupNorm, Lambda, Layer, LayerNorm, MaxPool, NamedOutputs, Rescale, Residual,
    Sequential, Unembedding, Upsample, linear, relu6,
)
from dist_net.nn.losses import (
    Huber, Weighted, binary_cross_entropy_of_logits, binary_cross_entropy_of_probabilities,
    cross_entropy_of_probabilities, mean_absolute_error, mean_squared_error, one_hot,
)
from dist_net.nn.model import Model, Predictor
from dist_net.nn.parameters import (
    Buffer, Layout, Parameter, Scope, copy_of, glorot_uniform, he_normal, he_uniform, ones,
    small_normal, zeros,
)
from dist_net.nn.sequences import (
    GRU, LSTM, AveragePool1D, Bidirectional, Conv1D, MaxPool1D, MultiHeadAttention,
)
from dist_net.ground.spelling import did_you_mean

if not TYPE_CHECKING:  # a checker would accept any name

    def __getattr__(name):
        hint = "" if name[0] == "_" else did_you_mean(name, __all__)
        raise AttributeError(f"dist_net.nn has no {name!r}; {hint}".removesuffix("; "))


__all__ = [
    "GRU", "LSTM", "AveragePool", "AveragePool1D", "BatchNorm", "Bidirectional", "Buffer",
    "Concatenate", "Conv1D", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "Dropout",
    "Embedding", "Features", "Field", "Flatten", "Frozen", "FrozenBatchNorm", "GlobalAveragePool",
    "GlobalMaxPool", "GroupNorm", "Huber", "Lambda", "Layer", "LayerNorm", "Layout", "MaxPool",
    "MaxPool1D", "Model", "MultiHeadAttention", "NamedOutputs", "Parameter", "Predictor",
    "Rescale", "Residual", "Scope", "Sequential", "Unembedding", "Upsample", "Weighted",
    "binary_cross_entropy_of_logits", "binary_cross_entropy_of_probabilities", "copy_of",
    "cross_entropy_of_logits", "cross_entropy_of_probabilities", "gelu", "glorot_uniform",
    "he_normal", "he_uniform", "leaky_relu", "linear", "mean_absolute_error", "mean_squared_error",
    "one_hot", "ones", "record", "relu", "relu6", "sigmoid", "silu", "small_normal", "softmax",
    "softplus", "tanh", "zeros",
]
