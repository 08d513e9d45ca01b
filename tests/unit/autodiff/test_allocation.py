"""A bound plan allocates no arrays when it runs, and leaves nothing behind."""

import tracemalloc

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.compiler import steps


def draw(*shape):
    return np.random.default_rng([5, *shape]).standard_normal(shape)


def variable(name, *shape):
    return ad.variable(name, shape, np.float64)


def training_step(batch, dtype=np.float32):
    """Loss and gradients of two dense layers, relu, dropout and cross-entropy, bound."""
    random = np.random.default_rng(0)
    x = ad.variable("x", (batch, 50), dtype)
    labels = ad.variable("labels", (batch,), np.uint8)
    layers = [ad.variable("w1", (50, 64), dtype), ad.variable("b1", (64,), dtype)]
    layers += [ad.variable("w2", (64, 10), dtype), ad.variable("b2", (10,), dtype)]
    hidden = ad.maximum(x @ layers[0] + layers[1], 0.0)
    kept = ad.where(ad.uniform(hidden.shape, random) > 0.5, hidden, 0.0) * 2.0
    logits = kept @ layers[2] + layers[3]
    loss = ad.mean(ad.cross_entropy_of_logits(logits, labels))
    hits = ad.equal(ad.argmax(logits, -1), ad.astype(labels, np.intp))
    plan = ad.compile([loss, ad.sum(ad.astype(hits, dtype)), *ad.gradients(loss, layers)])
    arrays = {
        node.operation.name: random.standard_normal(node.shape).astype(dtype) for node in layers
    }
    arrays["x"] = random.standard_normal(x.shape).astype(dtype)
    arrays["labels"] = random.integers(0, 10, batch).astype(np.uint8)
    return plan.bind(arrays)


def allocated(run, times):
    """What several rounds of runs leave behind, at least, and the most that one held at once.

    A single round may also fill a free list of Python's; a leak is in every round.
    """
    run()
    left, peaks = [], []
    tracemalloc.start()
    try:
        for _ in range(4):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(times):
                run()
            after, peak = tracemalloc.get_traced_memory()
            left.append(after - before)
            peaks.append(peak - before)
    finally:
        tracemalloc.stop()
    return min(left), max(peaks)


def test_a_leak_and_a_temporary_array_are_found():
    kept = []
    left, _ = allocated(lambda: kept.append(object()), 40)
    assert left > 0
    _, peak = allocated(lambda: np.ones(20_000).sum(), 3)
    assert peak > 150_000


@pytest.mark.parametrize("strip_bytes", [1 << 16, 1 << 10])
def test_running_allocates_no_arrays_and_leaves_nothing_behind(strip_bytes, monkeypatch):
    monkeypatch.setattr(steps, "STRIP_BYTES", strip_bytes)
    bound = training_step(500)
    left, peak = allocated(bound.run, 40)
    assert left <= 0
    # NumPy's casts go through a buffer of 8192 elements; a hidden activation has 128,000 bytes.
    assert peak < 50_000


@pytest.mark.parametrize(
    "build",
    [
        lambda x, y: ad.exp(x) + ad.transpose(ad.sqrt(y)),
        lambda x, y: ad.where(x > y, x, 0.0),
        lambda x, y: ad.maximum(x * y, 0.0) @ ad.transpose(x),
        lambda x, y: ad.max(x + y, 1) + ad.sum(x, 0),
        lambda x, y: ad.reshape(ad.transpose(x), (500, 320)) * ad.reshape(y, (500, 320)),
        lambda x, y: ad.astype(ad.astype(x, np.float32), np.float64) + ad.sum(y),
        lambda x, y: ad.softmax(x - ad.broadcast_to(ad.mean(y, 0), (400, 400))),
        lambda x, y: ad.batch_normalize(x, ad.max(y, 0), ad.sum(y, 0), ad.sqrt)[0],
        lambda x, y: ad.batch_normalize(x + 99.0, ad.max(y, 0), ad.sum(y, 0), ad.sqrt)[0],
    ],
)
def test_operations_allocate_no_arrays(build):
    x, y = variable("x", 400, 400), variable("y", 400, 400)
    output = ad.sum(ad.square(build(x, y)))
    bound = ad.compile([output, *ad.gradients(output, [x, y])]).bind(
        {"x": draw(400, 400), "y": np.abs(draw(400, 400))}
    )
    left, peak = allocated(bound.run, 3)
    assert left <= 0
    assert peak < 90_000  # an array has 1,280,000 bytes, or 160,000 if of truth values
