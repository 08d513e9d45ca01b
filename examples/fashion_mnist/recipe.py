"""A recipe for Fashion-MNIST: the training of ``by_hand.py``, with layers and on a cluster.

    dist-net train examples/fashion_mnist/recipe.py

A recipe is a Python file that defines a ``Recipe`` in a variable called ``recipe``. Copy this file
and change the network or the dataset (a name, or your function that returns a ``Dataset``).
"""

from dist_net import Recipe
from dist_net.nn import Dense, Dropout, Flatten, Rescale, Sequential, relu
from dist_net.optim import Adam, Cosine

recipe = Recipe(
    network=Sequential(
        Rescale(1 / 255),  # bytes to numbers from 0 to 1
        Flatten(),  # 28 by 28 pixels to 784 features
        Dense(128, relu),
        Dropout(0.1),  # in training only
        Dense(10),  # one logit for each class; the loss is the cross-entropy of logits
    ),
    dataset="fashion-mnist",
    input_shape=(28, 28),
    optimizer=Adam(),
    learning_rate=0.0005,
    schedule=Cosine(),
    batch_size=32,
    epochs=10,
)
