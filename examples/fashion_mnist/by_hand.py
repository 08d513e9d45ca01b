"""Fashion-MNIST from the ground up: a network, a loss, a gradient, and descent along it.

    python examples/fashion_mnist/by_hand.py

It shows each part of training in the order in which you need it. ``recipe.py`` describes the same
training in terms of layers, for a cluster. ``docs/learn/vjp.md`` computes the four gradients of
this network in ten lines of NumPy.
"""

import numpy as np

from dist_net import autodiff as ad
from dist_net.data import dataset_named, epoch_order

BATCH_SIZE = 32
EPOCHS = 3
LEARNING_RATE = 0.1

# 1. The data: 60,000 grey images of 28 by 28 pixels, each with one of ten labels.
data = dataset_named("fashion-mnist", progress=print)

# 2. The network, as an expression of variables. Nothing is computed yet: an expression only knows
#    its shape. An operation whose inputs do not fit raises an error now, not at the first run.
pixels = ad.variable("pixels", (BATCH_SIZE, 28, 28), np.uint8)
labels = ad.variable("labels", (BATCH_SIZE,), np.uint8)
shapes = {"kernel_1": (784, 128), "bias_1": (128,), "kernel_2": (128, 10), "bias_2": (10,)}
parameters = {name: ad.variable(name, shape) for name, shape in shapes.items()}

x = ad.reshape(ad.astype(pixels, np.float32) * (1 / 255), (BATCH_SIZE, 784))
hidden = ad.maximum(x @ parameters["kernel_1"] + parameters["bias_1"], 0.0)
logits = hidden @ parameters["kernel_2"] + parameters["bias_2"]

# 3. The loss: the cross-entropy of the right label, averaged over the minibatch.
loss = ad.mean(ad.cross_entropy_of_logits(logits, labels))

# 4. The gradients of the loss with respect to the parameters. They are expressions too, built in a
#    single pass through the graph from the loss back to the parameters.
gradients = ad.gradients(loss, list(parameters.values()))

# 5. The plan: the graph as a list of NumPy calls on arrays that are allocated once. ``bind``
#    assigns an array to each variable. ``run`` reads the current values and fills the outputs.
generator = np.random.default_rng(0)
arrays = {
    name: (generator.standard_normal(shape) * 0.05).astype(np.float32)
    for name, shape in shapes.items()
}
images = np.empty((BATCH_SIZE, 28, 28), np.uint8)
answers = np.empty(BATCH_SIZE, np.uint8)
step = ad.compile([loss, *gradients]).bind({"pixels": images, "labels": answers, **arrays})

# 6. Stochastic gradient descent: take a minibatch, and step a little way against the gradient.
for epoch in range(EPOCHS):
    order = epoch_order(seed=0, epoch=epoch, samples=len(data.train_targets))
    losses = []
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        images[...] = data.train_inputs[chosen]
        answers[...] = data.train_targets[chosen]
        minibatch_loss, *minibatch_gradients = step.run()
        losses.append(float(minibatch_loss))
        for array, gradient in zip(arrays.values(), minibatch_gradients, strict=True):
            array -= LEARNING_RATE * gradient
    print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")

# 7. The accuracy of the same network on images that it was not trained on.
predicted = ad.compile([ad.argmax(logits, axis=1)]).bind({"pixels": images, **arrays})
right = 0
for start in range(0, len(data.test_targets) - BATCH_SIZE + 1, BATCH_SIZE):
    images[...] = data.test_inputs[start : start + BATCH_SIZE]
    (classes,) = predicted.run()
    right += int(np.sum(classes == data.test_targets[start : start + BATCH_SIZE]))
print(f"test accuracy {right / (start + BATCH_SIZE):.1%}")
