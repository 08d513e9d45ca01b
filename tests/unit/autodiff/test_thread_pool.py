"""A plan with a pool: its threads find what one finds, share every costly step, and end."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff.compiler import steps
from dist_net.autodiff.compiler.plan import BoundPlan
from dist_net.autodiff.kernels import thread_pool as pool_module
from dist_net.autodiff.kernels.convolution import training
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations import matmul, reduction
from dist_net.data import Dataset
from dist_net.training.worker.local_steps import Minibatch, TrainingStep


def draw(*shape):
    return np.random.default_rng([5, *shape]).standard_normal(shape)


def variable(name, *shape, dtype=np.float64):
    return ad.variable(name, shape, dtype)


def training_graph(batch, size=12, dtype=np.float64):
    """Loss and gradients of a net with a step of every kind that a pool shares, and its arrays."""
    x = variable("x", batch, size, size, 3, dtype=dtype)
    kernels = [
        variable(f"kernel_{i}", *shape, dtype=dtype)
        for i, shape in enumerate([(3, 3, 3, 8), (3, 3, 8, 6), (1, 1, 6, 6)])
    ]
    gamma, beta = variable("gamma", 8, dtype=dtype), variable("beta", 8, dtype=dtype)
    normal, *_ = ad.batch_normalize(
        ad.conv2d(x, kernels[0]), gamma, beta, lambda variance: ad.sqrt(variance + 1e-5)
    )
    pooled = ad.max_pool(ad.maximum(normal, normal * 0.1), 2)
    strided = ad.average_pool(ad.conv2d(ad.tanh(pooled), kernels[1], 2), 3, 1, 1)
    loss = ad.mean(ad.square(ad.max_pool(ad.conv2d(strided, kernels[2]), 3, 1, 1)))
    nodes = [x, *kernels, gamma, beta]
    arrays = {node.operation.name: draw(*node.shape).astype(dtype) for node in nodes}
    return [loss, *ad.gradients(loss, nodes)], arrays


@pytest.fixture
def small_strips(monkeypatch):
    """Results of 2000 bytes are shared, in pieces of 500."""
    monkeypatch.setattr(pool_module, "SHARED_BYTES", 2000)
    monkeypatch.setattr(steps, "STRIP_BYTES", 500)
    for module in (steps, pool_module):
        monkeypatch.setattr(module, "SHARED_STRIP_BYTES", 500)
    monkeypatch.setattr(training, "STRIP_BYTES", 1)
    monkeypatch.setattr(training, "MIN_PIXELS", 8)
    monkeypatch.setattr(reduction, "PART_BYTES", 500)
    monkeypatch.setattr(reduction, "PART_ROWS", 8)
    monkeypatch.setattr(matmul, "SHARED_PRODUCT", 2000)


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_find_what_one_finds_and_the_same_bits_each_time(threads):
    outputs, arrays = training_graph(5)
    expected = ad.evaluate(outputs, **arrays)
    pool = ThreadPool(threads)
    bound = ad.compile(outputs, pool).bind(arrays)
    first = [each.copy() for each in bound.run()]
    for value, wanted in zip(first, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-12)
    for _ in range(20):
        for each in bound.outputs:
            each.fill(np.nan)
        for value, same in zip(bound.run(), first, strict=True):
            np.testing.assert_array_equal(value, same)
    pool.close()


class Recording(ThreadPool):
    """Keeps what it is given to share."""

    def __init__(self):
        super().__init__(2)
        self.shared = []

    def calls(self, tasks):
        if len(tasks) > 1:
            self.shared.append(tasks)
        return super().calls(tasks)


def normalized(x, y):
    return ad.batch_normalize(x, ad.max(y, (0, 1, 2)), ad.max(x, (0, 1, 2)), ad.sqrt)[0]


# With what is elementwise before and after: a product with the cotangent, say.
SHARED = {
    "convolution": (lambda x, y: ad.conv2d(x, ad.matrix_transpose(y[:3])), 3),
    "max pool": (lambda x, _: ad.max_pool(x, (1, 2)), 3),
    "overlapping max pool": (lambda x, _: ad.max_pool(x, (3, 1), 1, ((1, 1), (0, 0))), 3),
    "average pool": (lambda x, _: ad.average_pool(x, (2, 1)), 4),
    "leaky relu": (lambda x, _: ad.leaky_relu(x), 2),
    "where": (lambda x, y: ad.where(y > 0.0, x, 0.0), 2),
    "batch norm": (normalized, 15),
    "maximum of rows": (lambda x, _: ad.max(x, 3), 4),
    "product": (lambda x, y: ad.reshape(x, (-1, 24)) @ ad.reshape(y, (-1, 24))[:24], 3),
    "products": (lambda x, y: x @ ad.matrix_transpose(y), 3),
    "softmax": (lambda x, _: ad.softmax(x), 8),
}


def with_gradient(build, dtype):
    """A function of x and y and its gradient, and the arrays of their variables."""
    x, y, g = (variable(name, 4, 6, 6, 8, dtype=dtype) for name in "xyg")
    output = build(x, y)
    cotangent = ad.reshape(ad.reshape(g, (-1,))[: output.size], output.shape)
    outputs = [output, *ad.gradients(ad.sum(output * cotangent), [x])]
    return outputs, {name: draw(4, 6, 6, 8).astype(dtype) + i for i, name in enumerate("xyg")}


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize(("build", "steps_shared"), SHARED.values(), ids=SHARED)
def test_every_costly_step_is_shared(build, steps_shared):
    outputs, arrays = with_gradient(build, np.float64)
    pool = Recording()
    ad.compile(outputs, pool).bind(arrays)
    assert len(pool.shared) == steps_shared
    pool.close()


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("name", sorted(SHARED.keys() - {"product"}))
def test_the_number_of_threads_changes_no_bit(name):
    outputs, arrays = with_gradient(SHARED[name][0], np.float32)
    bits = set()
    for threads in (1, 2, 3):
        pool = ThreadPool(threads)
        results = ad.compile(outputs, pool).bind(arrays).run()
        bits.add(b"".join(each.tobytes() for each in results))
        pool.close()
    assert len(bits) == 1


def test_a_pass_through_little_memory_is_not_worth_sharing():
    x = variable("x", 32, 14, 14, 32, dtype=np.float32)
    pool = Recording()
    halved = ad.max_pool(ad.maximum(x, x * 0.1), 2)
    ad.compile([halved], pool).bind({"x": draw(*x.shape).astype("f4")})
    assert not pool.shared
    pool.close()


def test_each_thread_has_scratch_of_its_own_for_a_chain():
    x = variable("x", 2000, 400)
    pool = Recording()
    ad.compile([ad.exp(ad.tanh(x))], pool).bind({"x": draw(2000, 400)})
    (tasks,) = pool.shared
    for (first, _), (second, _) in tasks:
        assert not np.shares_memory(first.keywords["out"], second.keywords["out"])
    pool.close()


def test_who_comes_too_late_finds_nothing_to_do_and_is_not_waited_for():
    done = []
    round_ = pool_module._Round([[[lambda: done.append(0)], [lambda: done.append(1)]]])
    round_.close()
    round_.help(1)
    assert done == []


def test_who_has_begun_is_waited_for():
    begun, go, done = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        assert go.wait(60)
        done.append(1)

    round_ = pool_module._Round([[[work], [work]]])
    helper = threading.Thread(target=round_.help, args=(1,))
    helper.start()
    assert begun.wait(60)
    caller = threading.Thread(target=lambda: (round_.close(), done.append(0)))
    caller.start()
    go.set()
    for thread in (helper, caller):
        thread.join(60)
    assert done == [1, 0]


def pool_threads():
    return [each for each in threading.enumerate() if each.name.startswith("pool-")]


def step_of(*layers, threads):
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    labels = np.arange(32, dtype=np.uint8) % 10
    names = tuple("0123456789")
    dataset = Dataset("noise", images, labels, images, labels, names)
    model = nn.Model(nn.Sequential(nn.Rescale(), *layers), (8, 8, 1))
    step = TrainingStep(model, dataset, 0, threads)
    weights = model.layout.initial(np.random.default_rng(0))
    return step, weights


CONVOLUTIONS = (nn.Conv2D(10, 3), nn.GlobalAveragePool())
DENSE = (nn.Flatten(), nn.Dense(10))


@pytest.mark.parametrize("layers", [CONVOLUTIONS, DENSE])
def test_a_step_has_a_pool_which_ends_with_it(layers):
    step, weights = step_of(*layers, threads=3)
    step(weights, Minibatch(0, 0, 16))
    assert len(pool_threads()) == 2
    del step
    assert not pool_threads()


@pytest.mark.parametrize(
    ("layers", "threads", "within"), [(CONVOLUTIONS, 2, 1), (CONVOLUTIONS, 1, 2), (DENSE, 2, 1)]
)
def test_blas_has_one_thread_while_a_pool_works(layers, threads, within, monkeypatch):
    seen = []
    run = BoundPlan.run

    def blas_threads():
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    def recorded(bound):
        seen.append(blas_threads())
        return run(bound)

    monkeypatch.setattr(BoundPlan, "run", recorded)
    step, weights = step_of(*layers, threads=threads)
    with threadpool_limits(2, "blas"):
        step(weights, Minibatch(0, 0, 16))
        assert seen == [{within}]
        assert blas_threads() == {2}
