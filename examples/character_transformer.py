"""A transformer that predicts the next character of Python's own help texts.

    dist-net train examples/character_transformer.py --workers 2
    dist-net export runs/NAME characters.onnx
    dist-net serve runs/NAME

An input is LENGTH characters, as indices of CHARACTERS; the output has the logits of the character
after each of them. The embedding and the logits share one table.
"""

from pydoc_data.topics import topics

import numpy as np

from dist_net import Recipe
from dist_net.autodiff import Expression, gelu
from dist_net.data import Dataset
from dist_net.nn import (
    Dense,
    Embedding,
    LayerNorm,
    MultiHeadAttention,
    Residual,
    Scope,
    Sequential,
    Unembedding,
    small_normal,
)
from dist_net.optim import Adam, Cosine

TEXT = "\n".join(topics[name] for name in sorted(topics))[:60_000]
CHARACTERS = "".join(sorted({*TEXT}))
LENGTH, WIDTH, HEADS, BLOCKS = 32, 64, 4, 2


class Positions:
    """Add a trained vector for each position."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        return x + scope.parameter("positions", x.shape[1:], small_normal)


def block() -> Sequential:
    attention = MultiHeadAttention(HEADS, causal=True)
    dense = Dense(4 * WIDTH, gelu), Dense(WIDTH)
    return Sequential(Residual(LayerNorm(), attention), Residual(LayerNorm(), *dense))


def text() -> Dataset:
    """Pieces of the text and their next characters; the last tenth is the test part."""
    numbers = np.array([CHARACTERS.index(each) for each in TEXT], np.uint8)
    count = (len(numbers) - 1) // LENGTH
    inputs = numbers[: count * LENGTH].reshape(count, LENGTH)
    targets = numbers[1 : count * LENGTH + 1].reshape(count, LENGTH)
    train = count * 9 // 10
    parts = inputs[:train], targets[:train], inputs[train:], targets[train:]
    return Dataset("topics", *parts, class_names=tuple(CHARACTERS))


embedding = Embedding(len(CHARACTERS), WIDTH)
recipe = Recipe(
    network=Sequential(
        embedding,
        Positions(),
        *(block() for _ in range(BLOCKS)),
        LayerNorm(),
        Unembedding(embedding),
    ),
    dataset=text,
    input_shape=(LENGTH,),
    optimizer=Adam(),
    learning_rate=0.003,
    schedule=Cosine(),
    batch_size=16,
    epochs=3,
)
