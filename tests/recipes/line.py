"""A gradient function in NumPy: a line through points, and the mean of their inputs as a buffer."""

import numpy as np

from dist_net import Recipe
from dist_net.optim import SGD

SAMPLES, INPUTS = 640, 5
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(1, 1, (SAMPLES, INPUTS)).astype(np.float32)
SLOPE = np.arange(1, INPUTS + 1, dtype=np.float32)
Y = X @ SLOPE


def gradient(weights, rows):
    error = X[rows] @ weights[:INPUTS] - Y[rows]
    mean = (2 / len(rows)) * (error @ X[rows])
    moving = 0.9 * weights[INPUTS:] + 0.1 * X[rows].mean(0)
    return float(error @ error), np.concatenate([mean, moving]).astype(np.float32)


def evaluate(weights):
    error = X @ weights[:INPUTS] - Y
    return {"test_loss": error @ error / SAMPLES}


recipe = Recipe(
    gradient=gradient,
    weights=np.zeros(2 * INPUTS, np.float32),
    samples=SAMPLES,
    evaluate=evaluate,
    parameters={"slope": (INPUTS,)},
    buffers={"mean": (INPUTS,)},
    optimizer=SGD(),
    learning_rate=0.02,
    batch_size=16,
    epochs=8,
)
