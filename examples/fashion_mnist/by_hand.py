"""Fashion-MNIST from the ground up: a network, a loss, a gradient, and descent along it.

    python examples/fashion_mnist/by_hand.py

Everything that training is, in the order in which one needs it. ``recipe.py``, beside this file,
says the same in the words of layers, and a cluster trains it.
"""

import numpy as np

from dist_net import autodiff as ad
from dist_net.data import dataset_named, epoch_order

BATCH_SIZE = 32
EPOCHS = 3
LEARNING_RATE = 0.1

# 1. The data: 60,000 grey pictures of 28 by 28 pixels, each with one of ten labels.
data = dataset_named("fashion-mnist", progress=print)

# 2. The network, as an expression of variables. Nothing is computed yet: an expression only knows
#    its shape, and an operation that does not fit is refused here, not at the first run.
pixels = ad.variable("pixels", (BATCH_SIZE, 28, 28), np.uint8)
labels = ad.variable("labels", (BATCH_SIZE,), np.uint8)
shapes = {"kernel_1": (784, 128), "bias_1": (128,), "kernel_2": (128, 10), "bias_2": (10,)}
parameters = {name: ad.variable(name, shape) for name, shape in shapes.items()}

x = ad.reshape(ad.astype(pixels, np.float32) * (1 / 255), (BATCH_SIZE, 784))
hidden = ad.maximum(x @ parameters["kernel_1"] + parameters["bias_1"], 0.0)
logits = hidden @ parameters["kernel_2"] + parameters["bias_2"]

# 3. The loss: how surprised the network is by the right label, on average over the minibatch.
loss = ad.mean(ad.cross_entropy_of_logits(logits, labels))

# 4. The gradient of the loss with respect to every parameter: expressions too, found by going
#    once through the graph from the loss back to the parameters.
gradients = ad.gradients(loss, list(parameters.values()))

# 5. The plan: the graph as a list of NumPy calls on arrays that are made once. ``bind`` says which
#    arrays the variables are; ``run`` reads them as they stand and fills the outputs.
generator = np.random.default_rng(0)
arrays = {
    name: (generator.standard_normal(shape) * 0.05).astype(np.float32)
    for name, shape in shapes.items()
}
images = np.empty((BATCH_SIZE, 28, 28), np.uint8)
answers = np.empty(BATCH_SIZE, np.uint8)
step = ad.compile([loss, *gradients]).bind({"pixels": images, "labels": answers, **arrays})

# 6. Stochastic gradient descent: take a few pictures, and go a little way against the gradient.
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

# 7. How good is it? The same network, on pictures that it has not seen.
predicted = ad.compile([ad.argmax(logits, axis=1)]).bind({"pixels": images, **arrays})
right = 0
for start in range(0, len(data.test_targets) - BATCH_SIZE + 1, BATCH_SIZE):
    images[...] = data.test_inputs[start : start + BATCH_SIZE]
    (classes,) = predicted.run()
    right += int(np.sum(classes == data.test_targets[start : start + BATCH_SIZE]))
print(f"test accuracy {right / (start + BATCH_SIZE):.1%}")
