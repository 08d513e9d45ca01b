"""Fashion-MNIST: 28x28 images of clothes in ten classes, by two dense layers.

Adam at a small rate, because it does not mind gradients that are a few versions old: about 6 with
two workers and 9 with four. Momentum of 0.9 lost two points of accuracy when they were only 3 old.
"""

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
