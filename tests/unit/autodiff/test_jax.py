"""Random programs have the values and the first and second derivatives that JAX finds."""

import numpy as np
import pytest

from dist_net import autodiff as ad

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

SHAPE = (3, 4)  # of all values, so that JAX compiles each operation once

# Pairs of functions: ours and theirs.
UNARY = {
    "sin": (ad.sin, jnp.sin),
    "cos": (ad.cos, jnp.cos),
    "abs": (abs, abs),
    "erf": (ad.erf, jax.scipy.special.erf),
    "softplus": (ad.softplus, jax.nn.softplus),
    "silu": (ad.silu, jax.nn.silu),
    "gelu": (ad.gelu, lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu by tanh": (lambda x: ad.gelu(x, approximate=True), jax.nn.gelu),
    "sigmoid": (ad.sigmoid, jax.nn.sigmoid),
    "leaky relu": (lambda x: ad.leaky_relu(x, 0.25), lambda x: jax.nn.leaky_relu(x, 0.25)),
    "log1p": (lambda x: ad.log1p(x**2), lambda x: jnp.log1p(x**2)),
    "cube": (lambda x: ad.tanh(x) ** 3, lambda x: jnp.tanh(x) ** 3),
    "clip": (lambda x: x.clip(-0.7, 0.4), lambda x: x.clip(-0.7, 0.4)),
    "softmax": (ad.softmax, jax.nn.softmax),
    "minimum of rows": (lambda x: x - x.min(1, keepdims=True), lambda x: x - x.min(1)[:, None]),
    "cumsum": (lambda x: x.cumsum(0) - x.cumsum(1), lambda x: x.cumsum(0) - x.cumsum(1)),
    "rows": (lambda x: x[[2, 0, 2]], lambda x: x[jnp.array([2, 0, 2])]),
    "columns": (lambda x: x[:, [3, 3, 0, -2]], lambda x: x[:, jnp.array([3, 3, 0, -2])]),
    "pairs": (
        lambda x: x[[[0], [1], [1]], [3, 0, 0, 1]],
        lambda x: x[jnp.array([[0], [1], [1]]), jnp.array([3, 0, 0, 1])],
    ),
    "take": (
        lambda x: x.take(np.arange(12)[::-2]).reshape(3, 2)[:, [0, 1, 1, 0]],
        lambda x: x.take(jnp.arange(12)[::-2]).reshape(3, 2)[:, jnp.array([0, 1, 1, 0])],
    ),
    "chosen by the values": (
        lambda x: x[x.argmin(0)[:3]] * x[ad.argmax(x[:, 0])],
        lambda x: x[x.argmin(0)[:3]] * x[jnp.argmax(x[:, 0])],
    ),
    "pad": (lambda x: ad.pad(x, 1)[:-2, 2:], lambda x: jnp.pad(x, 1)[:-2, 2:]),
    "split": (
        lambda x: ad.concatenate(ad.split(x, [1, 3], 1)[::-1], 1),
        lambda x: jnp.concatenate(jnp.split(x, [1, 3], 1)[::-1], 1),
    ),
    "stack": (
        lambda x: ad.stack([x, ad.sin(x)], 1).transpose(1, 0, 2)[1],
        lambda x: jnp.stack([x, jnp.sin(x)], 1).transpose(1, 0, 2)[1],
    ),
}
BINARY = {
    "add": (lambda x, y: x + y, lambda x, y: x + y),
    "multiply": (lambda x, y: x * y, lambda x, y: x * y),
    "divide": (lambda x, y: x / (y**2 + 1.0), lambda x, y: x / (y**2 + 1.0)),
    "power": (
        lambda x, y: ad.sigmoid(x) ** ad.tanh(y),
        lambda x, y: jax.nn.sigmoid(x) ** jnp.tanh(y),
    ),
    "maximum": (ad.maximum, jnp.maximum),
    "minimum": (ad.minimum, jnp.minimum),
    "where": (lambda x, y: ad.where(x > y, x, y * 0.5), lambda x, y: jnp.where(x > y, x, y * 0.5)),
    **{
        each: (
            lambda x, y, e=each: ad.tanh(ad.einsum(e, x, y, x)),
            lambda x, y, e=each: jnp.tanh(jnp.einsum(e, x, y, x, precision="highest")),
        )
        for each in ("ij,kj,kl->il", "ij,kj,kl->kl", "ij,ij,ij->ij")
    },
}


def programs(count, length):
    """Programs of random steps: the functions, and which of the earlier values they read."""
    random = np.random.default_rng(0)
    table, chosen = {**UNARY, **BINARY}, []
    while len(chosen) < count * length:
        chosen += [*random.permutation([*table])]  # each operation equally often
    for start in range(0, count * length, length):
        yield [
            (table[name], random.integers(0, 2 + i, 1 if name in UNARY else 2))
            for i, name in enumerate(chosen[start : start + length])
        ]


def result(steps, which, x, y, weights):
    """The weighted sum of the values of all steps, by our functions (0) or theirs (1)."""
    values = [x, y]
    for functions, reads in steps:
        values.append(functions[which](*(values[i] for i in reads)))
    return sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))


@pytest.mark.parametrize("steps", [*programs(9, 8)])
def test_values_and_derivatives_are_those_of_jax(steps):
    random = np.random.default_rng(1)
    weights = random.standard_normal((10, *SHAPE))
    at, directions = random.standard_normal((2, 2, *SHAPE))

    variables = [ad.variable(name, SHAPE, np.float64) for name in "xy"]
    ours = result(steps, 0, *variables, weights)
    first = ad.gradients(ours, variables)
    slope = sum((each * direction).sum() for each, direction in zip(first, directions, strict=True))
    found = ad.evaluate([ours, *first, *ad.gradients(slope, variables)], x=at[0], y=at[1])

    def theirs(x, y):
        return result(steps, 1, x, y, weights)

    with jax.enable_x64(True):

        @jax.jit
        def all_of_theirs(at, directions):
            pair = jax.jvp(jax.grad(theirs, (0, 1)), (*at,), (*directions,))
            return theirs(*at), *pair[0], *pair[1]

        expected = map(np.asarray, all_of_theirs(at, directions))
    for value, wanted in zip(found, expected, strict=True):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(value, wanted, rtol=1e-8, atol=1e-9 * scale)
