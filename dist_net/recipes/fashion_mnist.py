"""Fashion-MNIST: 28x28 pictures of clothes in ten classes, by two dense layers."""

from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
from dist_net.optim import Cosine, Momentum
from dist_net.recipe import Recipe

recipe = Recipe(
    network=Sequential(Rescale(), Flatten(), Dense(128, relu), Dense(10)),
    dataset="fashion-mnist",
    input_shape=(28, 28),
    optimizer=Momentum(0.9),
    learning_rate=0.02,
    schedule=Cosine(),
    batch_size=32,
    epochs=20,
)
