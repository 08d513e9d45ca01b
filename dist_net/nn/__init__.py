"""Layers, activations, initializers, losses and models, as functions of expressions."""

from dist_net.autodiff import (
    cross_entropy_of_logits,
    gelu,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from dist_net.nn.layers import (
    AveragePool,
    BatchNorm,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Features,
    Flatten,
    FrozenBatchNorm,
    GlobalAveragePool,
    Lambda,
    Layer,
    LayerNorm,
    MaxPool,
    MultiHeadAttention,
    Rescale,
    Residual,
    Sequential,
    SkipConnection,
    Upsample,
    Unembedding,
    linear,
    relu6,
)
from dist_net.nn.losses import (
    binary_cross_entropy_of_logits,
    cross_entropy_of_probabilities,
    mean_absolute_error,
    mean_squared_error,
    one_hot,
    weighted,
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
    small_normal,
    zeros,
)
from dist_net.nn.recurrent import GRU, LSTM
