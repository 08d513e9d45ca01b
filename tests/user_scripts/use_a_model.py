"""A trained model of any source: outputs, probabilities, classes, figures, and an export."""

from pathlib import Path

import numpy as np

import dist_net
from dist_net import LoadedModel, nn
from dist_net.data import dataset_named
from dist_net.images import Prediction

digits = dataset_named("digits")
images, labels = np.asarray(digits.test_inputs), np.asarray(digits.test_targets)
network = nn.Sequential(nn.Rescale(), nn.Flatten(), nn.Dense(32, "relu"), nn.Dense(10))
trained = nn.Model(network, (8, 8), class_names=digits.class_names)
dist_net.fit(trained, images, labels, epochs=2)
trained.save("digits.safetensors")

model: LoadedModel = dist_net.load(Path("digits.safetensors"))
(spec,) = model.inputs
likeliest: list[int] = model.predict(np.zeros((2, *spec.shape), spec.dtype)).argmax(1).tolist()
certain: float = model.probabilities(images).max(1).mean().item()
best: list[Prediction] = model.classify(images[0], top=2)
accuracy: float | None = model.evaluate(images, labels).accuracy
dist_net.export_model(model, "digits.npz")
print(spec.name, likeliest, certain, best[0].label, accuracy, model.class_names[:3])
