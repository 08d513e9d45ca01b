"""A notebook's first cells: a model, its training with callbacks, predictions."""

import numpy as np

import dist_net
from dist_net import EarlyStopping, ModelCheckpoint, nn
from dist_net.data import dataset_named
from dist_net.optim import Adam, Cosine, WarmUp

digits = dataset_named("digits")
network = nn.Sequential(nn.Rescale(), nn.Flatten(), nn.Dense(64, nn.relu), nn.Dense(10))
model = nn.Model(network, input_shape=(8, 8))
history = dist_net.fit(
    model,
    digits.train_inputs,
    digits.train_targets,
    validation=(digits.test_inputs, digits.test_targets),
    epochs=3,
    optimizer=Adam(beta1=0.8),
    schedule=WarmUp(1, Cosine()),
    callbacks=[EarlyStopping(patience=2), ModelCheckpoint("best.safetensors")],
    class_weight={0: 2.0},
    verbose=0,
)
first: float = history[0].loss
losses: list[float] = history.history["val_loss"]
classes: list[int] = np.argmax(model.predict(digits.test_inputs[:3]), axis=1).tolist()
model.save("digits.safetensors")
dist_net.export_model(nn.Model.load("digits.safetensors"), "digits.npz")
print(
    dist_net.__version__,
    first,
    losses,
    classes,
    model.evaluate(digits.test_inputs, digits.test_targets),
)
