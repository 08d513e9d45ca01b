"""Fashion-MNIST: 28x28 images of clothes in ten classes, by two dense layers."""

from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
from dist_net.optim import Adam, Cosine

recipe = Recipe(
    network=Sequential(Rescale(), Flatten(), Dense(128, relu), Dense(10)),
    dataset="fashion-mnist",
    input_shape=(28, 28),
    optimizer=Adam(),
    learning_rate=0.0004,
    schedule=Cosine(),
    batch_size=32,
    epochs=45,
)
