"""JAX's training step, compiled, of four nets of ``scripts/bench nets``.

Maps are (N, H, W, C). The weights are random, of the same shapes as ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.convolution_training_step import SEED
from benchmarks.peers.nets import LEARNING_RATE, NETS, WORDS
from benchmarks.peers.orders import Peer

EPSILON = 1e-5  # of normalisation

Network = Callable[[Callable[..., Any], Any], Any]
"""A net: of a function that returns a parameter by its shape, and of the inputs."""


def network_of(name: str) -> Network:
    """The net; it takes its parameters in the order of its operations."""
    import jax
    from jax import lax, nn
    from jax import numpy as jnp

    def dense(weight: Any, x: Any, units: int) -> Any:
        return x @ weight(x.shape[-1], units) + weight(units)

    def convolution(weight: Any, x: Any, filters: int, size: int = 3, stride: int = 1) -> Any:
        kernel, pad = weight(size, size, x.shape[-1], filters), [(size // 2, size // 2)] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, pad, dimension_numbers=layout)

    def normalized(weight: Any, x: Any, axes: tuple[int, ...]) -> Any:
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        scaled = (x - mean) * lax.rsqrt(variance + EPSILON)
        return scaled * (1 + weight(x.shape[-1])) + weight(x.shape[-1])

    def lenet(weight: Any, x: Any) -> Any:
        for filters in (32, 64):
            x = nn.relu(convolution(weight, x, filters) + weight(filters))
            window = (1, 2, 2, 1)
            x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
        return dense(weight, nn.relu(dense(weight, x.reshape(len(x), -1), 128)), 10)

    def resnet(weight: Any, x: Any) -> Any:
        def block(x: Any, filters: int, size: int, stride: int) -> Any:
            return normalized(weight, convolution(weight, x, filters, size, stride), (0, 1, 2))

        x = nn.relu(block(x, 16, 3, 1))
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            change = block(nn.relu(block(x, filters, 3, stride)), filters, 3, 1)
            x = nn.relu(change + (block(x, filters, 1, stride) if stride > 1 else x))
        return dense(weight, x.mean((1, 2)), 10)

    def lstm(weight: Any, x: Any) -> Any:
        projected, recurrent = dense(weight, x, 256) + weight(256), weight(64, 256)

        def step(state: tuple[Any, Any], of_input: Any) -> tuple[Any, None]:
            output, cell = state
            admit, keep, candidate, emit = jnp.split(of_input + output @ recurrent, 4, -1)
            cell = nn.sigmoid(keep) * cell + nn.sigmoid(admit) * jnp.tanh(candidate)
            return (nn.sigmoid(emit) * jnp.tanh(cell), cell), None

        zeros = jnp.zeros((len(x), 64), x.dtype)
        (output, _), _ = lax.scan(step, (zeros, zeros), projected.swapaxes(0, 1))
        return dense(weight, output, 10)

    def transformer(weight: Any, x: Any) -> Any:
        x = weight(WORDS, 128)[x]
        for _ in range(4):
            heads = dense(weight, normalized(weight, x, (2,)), 384).reshape(*x.shape[:2], 3, 4, 32)
            attended = jax.nn.dot_product_attention(*(heads[:, :, each] for each in range(3)))
            x = x + dense(weight, attended.reshape(x.shape), 128)
            hidden = nn.gelu(dense(weight, normalized(weight, x, (2,)), 512), approximate=False)
            x = x + dense(weight, hidden, 128)
        return dense(weight, normalized(weight, x, (2,)), WORDS)

    nets: dict[str, Network] = {
        "lenet": lenet,
        "resnet": resnet,
        "lstm": lstm,
        "transformer": transformer,
    }
    return nets[name]


def parameters_of(network: Network, inputs: NDArray[Any]) -> list[Any]:
    """Random parameters of a net, small enough for any depth."""
    import jax

    random, found = np.random.default_rng(SEED), []

    def weight(*shape: int) -> Any:
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.0
        with jax.ensure_compile_time_eval():
            found.append(jax.numpy.asarray(random.standard_normal(shape, np.float32) * scale))
        return found[-1]

    jax.eval_shape(lambda x: network(weight, x), inputs)
    return found


def load(_directory: Path, _batch: int, threads: int) -> Callable[[], NDArray[np.float32]]:
    """A function that takes a step of the net named on the command line; it returns the loss.

    JAX has as many threads as there are processors for it when it is first used.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax
    from jax import numpy as jnp

    inputs, targets = NETS[sys.argv[2]].arrays()
    network = network_of(sys.argv[2])

    def loss_of(parameters: list[Any], x: Any, y: Any) -> Any:
        following = iter(parameters)
        logits = network(lambda *_: next(following), x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1).mean()

    def adam(state: tuple[Any, ...], x: Any, y: Any) -> tuple[tuple[Any, ...], Any]:
        weights, means, squares, taken = state
        loss, gradients = jax.value_and_grad(loss_of)(weights, x, y)
        taken = taken + 1
        rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**taken) / (1 - 0.9**taken)
        means = [m + 0.1 * (g - m) for m, g in zip(means, gradients, strict=True)]
        squares = [v + 0.001 * (g * g - v) for v, g in zip(squares, gradients, strict=True)]
        moments = zip(weights, means, squares, strict=True)
        weights = [w - rate * m / (jnp.sqrt(v) + 1e-7) for w, m, v in moments]
        return (weights, means, squares, taken), loss

    compiled = jax.jit(adam, donate_argnums=0)
    minibatch = jnp.asarray(inputs), jnp.asarray(targets)
    weights = parameters_of(network, inputs)
    zeros = [[jnp.zeros_like(each) for each in weights] for _ in range(2)]
    state: tuple[Any, ...] = weights, *zeros, jnp.float32(0)

    def step() -> NDArray[np.float32]:
        nonlocal state
        state, loss = compiled(state, *minibatch)
        return np.asarray(loss)

    return step


if __name__ == "__main__":
    Peer("jax", load).obey()
