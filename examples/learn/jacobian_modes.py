"""Time reverse mode against forward mode: the tables of docs/learn/reverse_and_forward.md.

    python examples/learn/jacobian_modes.py            # about a minute
    python examples/learn/jacobian_modes.py --rounds 3 --largest 1000

The engine has only VJPs, which are reverse mode. Forward mode needs JVPs (Jacobian-vector
products), and two VJPs make a JVP: v -> v^T J is linear in v, so differentiating it once more, now
with respect to v, yields J u.
"""

import argparse
import os
from statistics import median

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from measuring import cpu_seconds, print_machine, print_table

from dist_net import autodiff as ad

BATCH_SIZE, FEATURES, CLASSES = 32, 20, 10
HIDDEN_UNITS = 4, 32, 320, 3200  # about 100, 1,000, 10,000 and 100,000 parameters
SIDES = (2, 512), (8, 128), (32, 32), (128, 8), (512, 2)


def jvp(y: ad.Expression, x: ad.Expression, u: ad.Expression) -> ad.Expression:
    """Return J u, the derivative of ``y`` along the direction ``u`` of ``x``."""
    v = ad.variable("v", y.shape, y.dtype)
    (vjp,) = ad.gradients(ad.sum(v * y), [x])  # v^T J, which is linear in v
    (derivative,) = ad.gradients(ad.sum(vjp * u), [v])
    return derivative


def loss_of(parameters: ad.Expression, hidden: int) -> ad.Expression:
    """Return the loss of a two-layer net; its parameters are slices of one flat vector."""
    inputs = ad.variable("inputs", (BATCH_SIZE, FEATURES))
    labels = ad.variable("labels", (BATCH_SIZE,), np.uint8)
    kernel_1 = ad.reshape(parameters[: FEATURES * hidden], (FEATURES, hidden))
    kernel_2 = ad.reshape(parameters[FEATURES * hidden :], (hidden, CLASSES))
    return ad.mean(ad.cross_entropy_of_logits(ad.tanh(inputs @ kernel_1) @ kernel_2, labels))


def gradient_case(hidden: int, rounds: int) -> list[str]:
    """Time the gradient of a loss in both modes. Return a row of the first table."""
    size = hidden * (FEATURES + CLASSES)
    parameters = ad.variable("parameters", (size,))
    direction = ad.variable("direction", (size,))
    loss = loss_of(parameters, hidden)
    (gradient,) = ad.gradients(loss, [parameters])
    along = jvp(loss, parameters, direction)

    generator = np.random.default_rng(0)
    arrays = {
        "inputs": generator.normal(size=(BATCH_SIZE, FEATURES)).astype(np.float32),
        "labels": generator.integers(0, CLASSES, BATCH_SIZE, np.uint8),
        "parameters": generator.normal(0, 0.1, size).astype(np.float32),
    }
    unit = np.zeros(size, np.float32)
    unit[size // 2] = 1
    plans = [
        ad.compile([loss]).bind(arrays),
        ad.compile([loss, gradient]).bind(arrays),
        ad.compile([loss, along]).bind(arrays | {"direction": unit}),
    ]
    _, exact = plans[1].run()
    np.testing.assert_allclose(plans[2].run()[1], exact[size // 2], rtol=1e-3, atol=1e-6)

    times = cpu_seconds([plan.run for plan in plans], rounds)
    loss_s, reverse_s, pass_s = (median(each) for each in zip(*times, strict=True))
    return [
        f"{size:,}",
        f"{1e3 * loss_s:.3f}",
        f"{1e3 * reverse_s:.3f}",
        f"{median(reverse / loss for loss, reverse, _ in times):.1f}",
        f"{1e3 * pass_s:.3f}",
        f"{1e3 * size * pass_s:,.0f}",
        f"{median(size * forward / reverse for _, reverse, forward in times):,.0f}",
    ]


def jacobian_case(inputs: int, outputs: int, rounds: int) -> list[str]:
    """Time a complete Jacobian in both modes. Return a row of the second table."""
    x = ad.variable("x", (1, inputs))
    hidden = ad.variable("kernel_1", (inputs, 256))
    last = ad.variable("kernel_2", (256, outputs))
    y = ad.tanh(ad.tanh(x @ hidden) @ last)
    v, u = ad.variable("v", y.shape), ad.variable("u", x.shape)
    (row,) = ad.gradients(ad.sum(v * y), [x])

    generator = np.random.default_rng(0)
    seeds = {"v": np.zeros(y.shape, np.float32), "u": np.zeros(x.shape, np.float32)}
    arrays = seeds | {
        name: generator.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in (("x", x.shape), ("kernel_1", hidden.shape), ("kernel_2", last.shape))
    }
    by_row, by_column = ad.compile([row]).bind(arrays), ad.compile([jvp(y, x, u)]).bind(arrays)

    def reverse() -> np.ndarray:
        return np.concatenate([run_with(by_row, seeds["v"], i) for i in range(outputs)])

    def forward() -> np.ndarray:
        return np.concatenate([run_with(by_column, seeds["u"], i) for i in range(inputs)]).T

    np.testing.assert_allclose(forward(), reverse(), rtol=1e-3, atol=1e-6)
    times = cpu_seconds([reverse, forward], rounds)
    reverse_s, forward_s = (median(each) for each in zip(*times, strict=True))
    ratio = median(forward / reverse for reverse, forward in times)
    return [
        f"{inputs:,}",
        f"{outputs:,}",
        f"{1e3 * reverse_s:.2f}",
        f"{1e3 * forward_s:.2f}",
        f"{ratio:.3g}",
    ]


def run_with(plan: ad.BoundPlan, seed: np.ndarray, index: int) -> np.ndarray:
    """Return a copy of the plan's output for a seed of zeros with a 1 at ``index``."""
    seed[0, index] = 1
    (output,) = plan.run()
    seed[0, index] = 0
    return output.copy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time reverse mode against forward mode.")
    parser.add_argument("--rounds", type=int, default=51, help="alternating rounds per row")
    parser.add_argument("--largest", type=int, default=100_000, help="most parameters of a row")
    options = parser.parse_args()
    sizes = [units for units in HIDDEN_UNITS if units * 30 <= options.largest]
    print_machine()
    columns = ["parameters", "loss, ms", "reverse mode, ms", "reverse / loss"]
    columns += ["one forward pass, ms", "forward mode, ms", "forward / reverse"]
    print_table(columns, [gradient_case(units, options.rounds) for units in sizes])
    columns = ["inputs", "outputs", "reverse mode, ms", "forward mode, ms", "forward / reverse"]
    print_table(columns, [jacobian_case(*sides, options.rounds) for sides in SIDES])


if __name__ == "__main__":
    main()
