"""8x8 digits of UCI, 1,797 of them, part of the package: for a first try and for tests."""

from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
from dist_net.optim import Adam, Cosine

recipe = Recipe(
    network=Sequential(Rescale(), Flatten(), Dense(32, relu), Dense(10)),
    dataset="digits",
    input_shape=(8, 8),
    optimizer=Adam(),
    learning_rate=0.003,
    schedule=Cosine(),
    batch_size=32,
    epochs=20,
)
