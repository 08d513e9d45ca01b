"""A run whose weights count how often each sample was applied.

Sample i is an image with a 1 at pixel i and 0 elsewhere, the network is one weight for each pixel,
and the loss is its output. So the gradient of a minibatch is 1/batch_size at its samples, and with
that learning rate each sample moves its own weight by exactly -1. Each step sleeps a little, so
that a run is long enough to disturb, and several workers take turns; a replay does not sleep.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_net.autodiff import Array, Expression, Operation, Shape, apply, astype, reshape
from dist_net.data import Dataset
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Scope, zeros
from dist_net.optim import SGD

SIDE = 16
SAMPLES = SIDE * SIDE
BATCH_SIZE = 8
STEP_S = 0.0 if "replay" in sys.argv else 0.002


@dataclass(frozen=True)
class Sleep(Operation):
    """The input as it is, after a while."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, inputs[0].dtype

    def bind(self, inputs: Sequence[Array], out: Array):
        def sleep_and_copy() -> None:
            time.sleep(STEP_S)
            np.copyto(out, inputs[0])

        return sleep_and_copy

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression]:
        return (cotangent,)


@dataclass(frozen=True)
class Counter:
    """x · weights, without a bias: (N, SIDE, SIDE) to (N, 1)."""

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        pixels = astype(reshape(x, (x.shape[0], SAMPLES)), np.float32)
        return apply(Sleep(), pixels) @ scope.parameter("weights", (SAMPLES, 1), zeros)


def output_itself(outputs: Expression, labels: Expression) -> Expression:
    return reshape(outputs, labels.shape)


def one_hot_images() -> Dataset:
    images = np.eye(SAMPLES, dtype=np.uint8).reshape(SAMPLES, SIDE, SIDE)
    labels = np.zeros(SAMPLES, np.uint8)
    return Dataset("one-hot", images, labels, images[:1], labels[:1], ("only",))


recipe = Recipe(
    network=Counter(),
    dataset=one_hot_images,
    input_shape=(SIDE, SIDE),
    loss=output_itself,
    optimizer=SGD(),
    learning_rate=BATCH_SIZE,
    batch_size=BATCH_SIZE,
    epochs=5,
)
