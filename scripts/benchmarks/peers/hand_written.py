"""The training step by hand in NumPy: what an engine's overhead is measured against.

Every buffer is made once; parameters and gradient are flat vectors as everywhere in the project,
and the gradient is a whole, true one, as a worker would push it, before SGD subtracts it.
"""

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.peers import task
from benchmarks.timing import median_us, training_case

Array = NDArray[np.float32]


def views(vector: Array) -> tuple[Array, Array, Array, Array]:
    """The two layers' weights and biases as views of one flat vector."""
    first = task.PIXELS * task.HIDDEN
    bias = first + task.HIDDEN
    second = bias + task.HIDDEN * task.CLASSES
    return (
        vector[:first].reshape(task.PIXELS, task.HIDDEN, copy=False),
        vector[first:bias],
        vector[bias:second].reshape(task.HIDDEN, task.CLASSES, copy=False),
        vector[second:],
    )


class HandWrittenStep:
    """One step of SGD on a random minibatch of `batch_size` images; calling it takes the step.

    `parameters` and `gradient` are flat float32 vectors of 101,770; `loss` is the last minibatch's
    mean cross-entropy.
    """

    def __init__(self, batch_size: int) -> None:
        self.images, self.labels = task.synthetic_images()
        generator = np.random.default_rng(1)
        self.order = generator.permutation(task.SAMPLES)
        self.position = 0
        self.batch_size = batch_size
        size = (task.PIXELS + 1) * task.HIDDEN + (task.HIDDEN + 1) * task.CLASSES
        self.parameters = generator.normal(0, 0.05, size).astype(np.float32)
        self.gradient = np.empty_like(self.parameters)
        self.change = np.empty_like(self.parameters)
        self.weights = views(self.parameters)
        self.gradients = views(self.gradient)
        self.loss = 0.0
        self.one_hot = np.eye(task.CLASSES, dtype=np.float32)
        self.bytes = np.empty((batch_size, task.PIXELS), np.uint8)
        self.pixels = np.empty((batch_size, task.PIXELS), np.float32)
        self.targets = np.empty(batch_size, np.uint8)
        self.hidden = np.empty((batch_size, task.HIDDEN), np.float32)
        self.active = np.empty((batch_size, task.HIDDEN), np.bool_)
        self.hidden_gradient = np.empty((batch_size, task.HIDDEN), np.float32)
        self.logits = np.empty((batch_size, task.CLASSES), np.float32)
        self.target_rows = np.empty_like(self.logits)
        self.row = np.empty((batch_size, 1), np.float32)

    def __call__(self) -> None:
        self.gather()
        self.forward()
        self.backward()
        self.update()

    def gather(self) -> None:
        """The next minibatch of the shuffled order, as pixels from 0 to 1."""
        if self.position + self.batch_size > task.SAMPLES:
            self.position = 0
        batch = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        # mode="clip" lets take write to `out` directly; the default goes through a copy.
        self.images.take(batch, axis=0, out=self.bytes, mode="clip")
        self.labels.take(batch, out=self.targets, mode="clip")
        np.multiply(self.bytes, np.float32(1 / 255), out=self.pixels)

    def forward(self) -> None:
        """Logits, then in their place the softmax less the one-hot targets, over the batch size."""
        first, first_bias, second, second_bias = self.weights
        logits, row = self.logits, self.row
        np.dot(self.pixels, first, out=self.hidden)
        np.add(self.hidden, first_bias, out=self.hidden)
        np.maximum(self.hidden, 0, out=self.hidden)
        np.dot(self.hidden, second, out=logits)
        np.add(logits, second_bias, out=logits)
        np.maximum.reduce(logits, axis=1, keepdims=True, out=row)
        np.subtract(logits, row, out=logits)
        self.one_hot.take(self.targets, axis=0, out=self.target_rows, mode="clip")
        target_logits = np.vdot(logits, self.target_rows)
        np.exp(logits, out=logits)
        np.add.reduce(logits, axis=1, keepdims=True, out=row)
        np.divide(logits, row, out=logits)
        np.subtract(logits, self.target_rows, out=logits)
        np.multiply(logits, np.float32(1 / self.batch_size), out=logits)
        np.log(row, out=row)
        self.loss = float(np.add.reduce(row, axis=None) - target_logits) / self.batch_size

    def backward(self) -> None:
        """The gradient of the mean cross-entropy, whole, in `gradient`."""
        first, first_bias, second, second_bias = self.gradients
        # np.dot, not np.matmul: an outer product (a batch of 1) takes 25 µs against 150.
        np.dot(self.hidden.T, self.logits, out=second)
        np.add.reduce(self.logits, axis=0, out=second_bias)
        np.dot(self.logits, self.weights[2].T, out=self.hidden_gradient)
        np.greater(self.hidden, 0, out=self.active)
        np.multiply(self.hidden_gradient, self.active, out=self.hidden_gradient)
        np.dot(self.pixels.T, self.hidden_gradient, out=first)
        np.add.reduce(self.hidden_gradient, axis=0, out=first_bias)

    def update(self) -> None:
        """Plain SGD; the whole vector fits in the L2 cache, where strips only add calls."""
        np.multiply(self.gradient, np.float32(task.LEARNING_RATE), out=self.change)
        np.subtract(self.parameters, self.change, out=self.parameters)


def measure(batch_size: int) -> task.Case:
    """The whole step, minibatch and update included, on one thread."""
    return training_case(0, batch_size, median_us(HandWrittenStep(batch_size)))


if __name__ == "__main__":
    with threadpool_limits(1):
        task.report("numpy", measure)
