"""Train the network of ``by_hand.py`` in Keras, to compare. Needs: pip install -e '.[peers]'

KERAS_BACKEND=tensorflow python examples/fashion_mnist/keras_equivalent.py
"""

import keras
import numpy as np

from dist_net.data import dataset_named

data = dataset_named("fashion-mnist", progress=print)

model = keras.Sequential(
    [
        keras.Input((28, 28)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),
    ]
)
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=0.1),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(np.asarray(data.train_inputs), data.train_targets, batch_size=32, epochs=3)
_, accuracy = model.evaluate(np.asarray(data.test_inputs), data.test_targets, verbose=0)
print(f"test accuracy {accuracy:.1%}")
