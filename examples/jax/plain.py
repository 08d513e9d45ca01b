"""Two dense layers on the 8x8 digits, trained by a loop of JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from dist_net.data import dataset_named

digits = dataset_named("digits")
images = digits.train_inputs.reshape(-1, 64).astype(np.float32) / 255
labels = digits.train_targets.astype(np.int32)

generator = np.random.default_rng(0)
parameters = {
    "hidden": generator.normal(0, 0.1, (64, 32)).astype(np.float32),
    "bias": np.zeros(32, np.float32),
    "output": generator.normal(0, 0.1, (32, 10)).astype(np.float32),
}


def logits(parameters, images):
    return jax.nn.relu(images @ parameters["hidden"] + parameters["bias"]) @ parameters["output"]


def loss(parameters, images, labels):
    logarithms = jax.nn.log_softmax(logits(parameters, images))
    return -jnp.take_along_axis(logarithms, labels[:, None], 1).mean()


def evaluate(parameters):
    images = digits.test_inputs.reshape(-1, 64).astype(np.float32) / 255
    labels = digits.test_targets.astype(np.int32)
    right = logits(parameters, images).argmax(1) == labels
    return {"test_loss": loss(parameters, images, labels), "test_accuracy": right.mean()}


if __name__ == "__main__":
    step = jax.jit(jax.grad(loss))
    for _ in range(20):
        for rows in np.array_split(generator.permutation(len(images)), 45):
            gradient = step(parameters, images[rows], labels[rows])
            parameters = jax.tree.map(lambda p, g: p - 0.5 * g, parameters, gradient)
    print(f"test accuracy {evaluate(parameters)['test_accuracy']:.1%}")
