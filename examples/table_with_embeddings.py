"""A table with categories and numbers: each category has an embedding, learned with the rest.

    dist-net train examples/table_with_embeddings.py --workers 2

The rows are synthetic: the price of a trip by its city, weekday, distance and hour. Cities differ
in price and in the effect of the hour, which the network can only learn for each city.
"""

import numpy as np

from dist_net import Recipe
from dist_net.autodiff import Expression, concatenate
from dist_net.data import Dataset
from dist_net.nn import Dense, Embedding, Scope, Sequential, relu
from dist_net.optim import Adam, Cosine

CITIES, WEEKDAYS = 40, 7


class Columns:
    """The embeddings of the first columns, which are categories, beside the other columns."""

    def __init__(self, *embeddings: Embedding) -> None:
        self.embeddings = embeddings

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        categories = [
            embedding(x[:, i].astype(np.int32), scope.child("embedding", embedding))
            for i, embedding in enumerate(self.embeddings)
        ]
        return concatenate([*categories, x[:, len(self.embeddings) :]], 1)


def trips() -> Dataset:
    """4,000 trips; the price has noise of deviation 0.1."""
    random = np.random.default_rng(0)
    base, hourly = random.normal(size=(2, CITIES))
    city, weekday = random.integers(0, CITIES, 4000), random.integers(0, WEEKDAYS, 4000)
    distance, hour = random.uniform(0, 1, (2, 4000))
    price = base[city] + distance + hourly[city] * np.sin(2 * np.pi * hour) + (weekday > 4) * 0.5
    rows = np.stack([city, weekday, distance, hour], 1).astype(np.float32)
    prices = (price + random.normal(0, 0.1, 4000))[:, None].astype(np.float32)
    return Dataset("trips", rows[:3200], prices[:3200], rows[3200:], prices[3200:])


recipe = Recipe(
    network=Sequential(
        Columns(Embedding(CITIES, 4), Embedding(WEEKDAYS, 2)),
        Dense(64, relu),
        Dense(64, relu),
        Dense(1),
    ),
    dataset=trips,
    input_shape=(4,),
    input_dtype=np.float32,
    loss="mse",
    optimizer=Adam(),
    learning_rate=0.01,
    schedule=Cosine(),
    batch_size=32,
    epochs=30,
)
