"""Inference with fixed weights: fewer passes, the same answers, the same bytes in any company."""

import os
import re
import threading
from collections import Counter

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.autodiff.compiler.specialise import specialise
from dist_net.autodiff.expression import topological_order
from dist_net.autodiff.kernels import gemm
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.errors import PreparedKernelsError, ShapeError
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nn import (
    GRU,
    LSTM,
    BatchNorm,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GlobalAveragePool,
    Lambda,
    MaxPool,
    Model,
    Predictor,
    Rescale,
    Residual,
    Scope,
    Sequential,
    he_normal,
    inference,
    leaky_relu,
    relu,
    relu6,
)
from dist_net.nn.inference import (
    Inference,
    key_of,
    key_of_vector,
    map_prepared,
    prepare,
    write_prepared,
)
from naming import naming

NETWORK = Sequential(
    Rescale(),
    Conv2D(16, 3, use_bias=False),
    BatchNorm(activation=leaky_relu),
    MaxPool(2),
    Residual(Conv2D(8, 1), BatchNorm(activation=relu), Conv2D(16, 3), BatchNorm()),
    Conv2D(32, 3, stride=2, activation=relu6),
    Residual(Conv2D(32, 3, activation=leaky_relu)),
    Flatten(),
    Dense(20, relu),
    Dense(5),
)


def model_of(network=NETWORK, shape=(16, 16, 3)):
    return Model(network, shape)


def weights_of(model, seed=0):
    """Random parameters and buffers; variances, and all the rest, above zero."""
    random = np.random.default_rng(seed)
    weights = model.layout.initial(random)
    for name, view in model.layout.views(weights).items():
        if name.endswith(("gamma", "variance")):
            view[...] = random.uniform(0.5, 2, view.shape)
        elif name.endswith(("beta", "mean", "bias")):
            view[...] = random.standard_normal(view.shape)
    return weights


def samples(model, count, seed=1):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *model.input_shape)).astype(np.uint8)


@pytest.fixture
def inference_of():
    """Makes sessions, and ends their threads."""
    made = []

    def make(model, weights, **options):
        made.append(Inference(model, prepare(model, weights), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(("side", "sizes"), [(1024, [2, 1]), (1184, [1])])
def test_large_images_are_computed_few_at_a_time(inference_of, side, sizes):
    """Eight plans of 2048 x 2048 pixels took most of a minute to compile."""
    layers = Rescale(), Conv2D(4, 3, stride=8), GlobalAveragePool(), Dense(2)
    model = Model(Sequential(*layers), (side, side, 3 if side > 1024 else 2))
    weights, inputs = weights_of(model), samples(model, 3)
    session = inference_of(model, weights, batch_size=8)
    session.warm_up()
    assert [*session._plans.compiled] == sizes
    outputs = Predictor(model, weights)(inputs)
    np.testing.assert_allclose(session(inputs), outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"reproducible": False, "threads": 2}])
def test_the_answers_are_those_of_the_network_as_it_stands(inference_of, options):
    model = model_of()
    weights, inputs = weights_of(model), samples(model, 11)
    outputs = inference_of(model, weights, batch_size=4, **options)(inputs)
    plain = Predictor(model, weights)(inputs)
    assert np.abs(outputs - plain).max() <= 1e-5 * np.abs(plain).max()


class Recurrent:
    """h ← tanh(x W + h U) over the rows of an image, from a first state of zeros or a parameter."""

    def __init__(self, first):
        self.first = first

    def __call__(self, x, scope):
        w = scope.parameter("w", (x.shape[2], 8), he_normal)
        u = scope.parameter("u", (8, 8), he_normal)
        state = self.first(x, scope)
        for row in range(x.shape[1]):
            state = ad.tanh(x[:, row] @ w + state @ u)
        return state


def no_state(x, _):
    return ad.constant(np.zeros((len_of(x), 8), np.float32))


def learnt_state(x, scope):
    state = scope.parameter("first", (1, 8), he_normal)
    return ad.broadcast_to(ad.tanh(state), (len_of(x), 8))


def with_token(x, scope):
    """A class token is the first of the sequence, as in a vision transformer."""
    token = scope.parameter("token", (1, 1, x.shape[2]), he_normal) * 2.0
    return ad.concatenate([ad.broadcast_to(token, (len_of(x), 1, x.shape[2])), x], 1)


def by_batch_size(x, scope):
    """Its values depend on the number of inputs, its shape does not."""
    scale = scope.parameter("scale", (1, x.shape[2]), he_normal)
    return ad.sum(x, 1) / float(len_of(x)) * (scale * float(len_of(x)))


def len_of(x):
    return x.shape[0]


@pytest.mark.parametrize(
    "layer",
    [Recurrent(no_state), Recurrent(learnt_state), with_token, by_batch_size],
    ids=["no state", "learnt state", "token", "by batch size"],
)
@pytest.mark.parametrize("reproducible", [True, False])
def test_values_with_a_row_per_input_are_left_to_the_plan(inference_of, layer, reproducible):
    model = Model(
        Sequential(Rescale(), layer, Lambda(lambda x: ad.reshape(x, (len_of(x), -1))), Dense(3)),
        (6, 5),
    )
    weights, inputs = weights_of(model), samples(model, 11)
    plain = Predictor(model, weights)(inputs)
    session = inference_of(model, weights, batch_size=4, reproducible=reproducible)
    session.warm_up()
    for count in (1, 2, 3, 4, 11):
        np.testing.assert_allclose(session(inputs[:count]), plain[:count], rtol=1e-4, atol=1e-6)
    if reproducible and layer is not by_batch_size:
        single = np.concatenate([session(inputs[i : i + 1]) for i in range(11)])
        assert np.array_equal(single, session(inputs))


def test_a_network_of_other_operations_for_another_batch_size_is_left_as_it_is(inference_of):
    def padded(x):
        x = ad.astype(x, np.float32)
        return ad.tanh(x) * 1.0 if len_of(x) % 3 else x

    model = Model(Sequential(Lambda(padded), Dense(3)), (5,))
    weights, inputs = weights_of(model), samples(model, 2)
    plain = Predictor(model, weights)(inputs)
    np.testing.assert_allclose(inference_of(model, weights)(inputs), plain, rtol=1e-5)


@pytest.mark.parametrize(("compiled", "plain"), [(False, "im2row"), (True, "direct")])
def test_a_printed_plan_names_the_algorithm_of_each_convolution(inference_of, compiled, plain):
    if compiled:
        pytest.importorskip("numba")
    model = model_of()
    session = inference_of(model, weights_of(model), batch_size=4, compiled=compiled)
    named = re.findall(r"Convolution by (\w+)", str(session.plan(4)))
    assert set(named) == {plain, "winograd2"}


def test_a_convolution_reads_what_a_view_shows_when_it_runs(inference_of):
    views = [
        lambda x: x[:, :, 1:5],
        lambda x: ad.transpose(x, (0, 2, 1, 3)),
        lambda x: x[..., 1:3],
        lambda x: ad.broadcast_to(ad.mean(x, 1, keepdims=True), x.shape),
    ]
    for view in views:
        model = model_of(Sequential(Rescale(), Lambda(view), Conv2D(8, 1), GlobalAveragePool()))
        weights = weights_of(model)
        session, plain = inference_of(model, weights), Predictor(model, weights)
        for seed in (1, 2):
            inputs = samples(model, 3, seed)
            expected = plain(inputs)
            assert np.abs(session(inputs) - expected).max() <= 1e-5 * np.abs(expected).max()


def operations(network, shape):
    """How often each operation is left in the graph for the inputs."""
    scope = Scope()
    outputs = network(ad.variable("inputs", shape), scope)
    graph = specialise([outputs], [*scope.parameters, *scope.buffers], ThreadPool())
    labels = [node.operation.label for node in topological_order(graph.outputs)]
    return Counter(label.partition(" by ")[0] for label in labels)


def run(graph, **arrays):
    """The outputs of a specialised graph whose one weight is k."""
    prepared = ad.evaluate(list(graph.prepared.values()), k=arrays["k"])
    by_name = dict(zip(graph.prepared, prepared, strict=True))
    return ad.evaluate(graph.outputs, x=arrays["x"], **by_name)


def test_all_that_follows_a_convolution_is_computed_with_it():
    network = Sequential(
        Conv2D(16, 3, use_bias=False),
        BatchNorm(activation=leaky_relu),
        Residual(Conv2D(16, 1), BatchNorm(activation=relu6), Conv2D(16, 3), BatchNorm()),
        GlobalAveragePool(),
        Dense(8),
    )
    left = operations(network, (2, 8, 8, 3))
    assert left["Convolution"] == 4  # a dense layer is one too
    rest = {name for name in left if name not in ("Convolution", "Variable", "Reshape")}
    assert rest <= {"Sum", "Multiply", "Constant"}  # of the average alone


def test_what_two_read_is_not_changed_for_one_of_them():
    x, k = ad.variable("x", (1, 4, 4, 3)), ad.variable("k", (1, 1, 3, 2))
    y = ad.conv2d(x, k)
    outputs = [y * 2.0, y + 1.0, ad.maximum(y, y * 0.5) + y]
    graph = specialise(outputs, ["k"], ThreadPool())
    arrays = {"x": np.ones(x.shape, np.float32), "k": np.full(k.shape, -1, np.float32)}
    for one, other in zip(run(graph, **arrays), ad.evaluate(outputs, **arrays), strict=True):
        assert np.array_equal(one, other)


def test_what_follows_a_clipping_is_computed_after_it():
    x, k = ad.variable("x", (1, 4, 4, 3)), ad.variable("k", (1, 1, 3, 3))
    clipped = [ad.clip(ad.conv2d(x, k * float(i)), -1.0, 1.0) for i in range(1, 6)]
    outputs = [
        clipped[0] + x,
        clipped[1] * 2.0,
        clipped[2] + 1.0,
        ad.leaky_relu(clipped[3]),
        ad.clip(clipped[4], 0.0, 2.0),
    ]
    graph = specialise(outputs, ["k"], ThreadPool())
    random = np.random.default_rng(0)
    arrays = {"x": random.standard_normal(x.shape, "f"), "k": random.standard_normal(k.shape, "f")}
    for found, expected in zip(run(graph, **arrays), ad.evaluate(outputs, **arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_sum_of_two_convolutions_takes_in_one_of_them():
    x, k = ad.variable("x", (1, 4, 4, 3)), ad.variable("k", (1, 1, 3, 3))
    outputs = [ad.maximum(ad.conv2d(x, k) + ad.conv2d(x, k * 2.0), 0.0)]
    graph = specialise(outputs, ["k"], ThreadPool())
    random = np.random.default_rng(0)
    arrays = {"x": random.standard_normal(x.shape, "f"), "k": random.standard_normal(k.shape, "f")}
    (found,) = run(graph, **arrays)
    np.testing.assert_allclose(found, ad.evaluate(outputs, **arrays)[0], atol=1e-6)


NETS = {
    "convolutions": model_of(),
    "dense": Model(
        Sequential(Rescale(), Flatten(), Dense(1200, relu), Dense(64), Dense(10)), (28, 28)
    ),
    "depthwise": model_of(
        Sequential(
            Rescale(),
            Conv2D(12, 1, 2),
            DepthwiseConv2D(3, activation=relu6),
            Residual(DepthwiseConv2D(5)),
            DepthwiseConv2D(3, 2),
            Flatten(),
            Dense(3),
        )
    ),
    "small maps": model_of(
        Sequential(
            Rescale(),
            Conv2D(16, 3, activation=relu),
            Residual(Conv2D(16, 3, activation=leaky_relu)),
            Conv2D(24, 1),
            MaxPool(2),
            Residual(Conv2D(24, 1)),
            Flatten(),
            Dense(3),
        ),
        (2, 2, 3),
    ),
    "larger maps and sequences": model_of(
        Sequential(
            Rescale(),
            Conv2DTranspose(16, 3, 2, activation=leaky_relu),
            Lambda(lambda x: ad.reshape(x, (len_of(x), 2, 128))),
            GRU(12, return_sequences=True),
            LSTM(12),
            Dense(3),
        ),
        (2, 2, 3),
    ),
}


@pytest.mark.parametrize("has_small_kernels", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("model", NETS.values(), ids=NETS)
def test_an_input_gets_the_same_bytes_whatever_its_company(
    inference_of, monkeypatch, model, compiled, has_small_kernels
):
    monkeypatch.setattr(gemm, "has_small_kernels", lambda: has_small_kernels)
    weights, inputs = weights_of(model), samples(model, 32)
    options = {"reproducible": True, "compiled": compiled}
    one_by_one = inference_of(model, weights, batch_size=1, **options)(inputs)
    random = np.random.default_rng(0)
    for batch_size, threads in ((8, 1), (9, 2), (32, 2)):
        together = inference_of(model, weights, batch_size=batch_size, threads=threads, **options)
        for count in (*range(10), 32):
            chosen = random.permutation(32)[:count]
            assert together(inputs[chosen]).tobytes() == one_by_one[chosen].tobytes()


def test_prepared_kernels_are_mapped_from_a_file(tmp_path, inference_of):
    model = model_of()
    weights, inputs = weights_of(model), samples(model, 2)
    path = tmp_path / "kernels"
    write_prepared(path, prepare(model, weights), "these")
    mapped = map_prepared(path, "these")
    assert not any(each.flags.writeable for each in mapped.values())
    session = Inference(model, mapped)
    assert session(inputs).tobytes() == inference_of(model, weights)(inputs).tobytes()
    session.close()
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_of_kernels_count_as_none(tmp_path):
    model = model_of()
    path = tmp_path / "kernels"
    assert map_prepared(path, "these") is None
    write_prepared(path, prepare(model, weights_of(model)), "these")
    assert map_prepared(path, "those") is None
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:100], content[:-1], b"\xff" * 64, b"\0" * 64):
        path.write_bytes(damaged)
        assert map_prepared(path, "these") is None


def test_the_key_of_kernels_follows_from_the_content_of_the_weights(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"12")
    status = weights.stat()
    key = key_of(model_of(), weights)
    assert key == key_of(model_of(), weights)
    weights.write_bytes(b"13")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key != key_of(model_of(), weights)


def test_the_key_of_kernels_follows_from_operations_and_constants():
    table, other = np.arange(3000.0, dtype=np.float32), np.arange(3000.0, dtype=np.float32)
    other[1500] += 1  # where NumPy's repr shows an ellipsis

    def net(factor=2.0, table=table, function=ad.tanh, last=5):
        return Sequential(
            Rescale(),
            Flatten(),
            Dense(3000),
            Lambda(lambda x: function(x * factor + ad.constant(table))),
            Dense(last),
        )

    def key(network):
        model = model_of(network)
        return key_of_vector(model, np.zeros(3, np.float32))

    others = [net(factor=2.0000002), net(table=other), net(function=ad.exp), net(last=6)]
    assert key(net()) == key(net())
    assert len({key(each) for each in [net(), *others]}) == 5


def test_the_key_of_kernels_is_the_same_in_each_process():
    """What a process's addresses are must not be in it."""
    for network in (load_recipe("fashion-mnist-conv").recipe.network, Lambda(ad.exp)):
        nodes = topological_order([network(ad.variable("x", (1, 28, 28)), Scope())])
        assert not [node for node in nodes if " at 0x" in repr(node.operation)]


@pytest.mark.parametrize("place", [-1, -2000, 200, 60])
def test_a_damaged_byte_in_a_file_of_kernels_is_noticed(tmp_path, place):
    model = model_of()
    path = tmp_path / "kernels"
    write_prepared(path, prepare(model, weights_of(model)), "these")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert map_prepared(path, "these") is None


def test_kernels_that_cannot_be_written_are_told_of(tmp_path):
    with pytest.raises(PreparedKernelsError, match=naming(tmp_path / "none" / "kernels")):
        write_prepared(tmp_path / "none" / "kernels", {"a": np.zeros(3, np.float32)}, "these")


@pytest.fixture
def of_another_model():
    """The prepared kernels of a net with 9 filters, and the shapes that its refusal names; how
    they are laid out depends on the CPU."""
    model, other = model_of(), model_of(Sequential(Rescale(), Conv2D(9, 3), Flatten(), Dense(5)))
    prepared = prepare(other, weights_of(other))
    shapes = [each["prepared/0"].shape for each in (prepared, prepare(model, weights_of(model)))]
    assert [shape[-1] for shape in shapes] == [9, 16]
    return prepared, naming(*shapes)


def test_kernels_of_another_model_are_refused(of_another_model):
    prepared, refusal = of_another_model
    with pytest.raises(ShapeError, match=refusal):
        Inference(model_of(), prepared)


@pytest.mark.parametrize("is_here", [False, True])
@pytest.mark.parametrize("was_there", [False, True])
def test_kernels_laid_out_for_another_machine_are_read(
    monkeypatch, inference_of, is_here, was_there
):
    model = model_of()
    weights = weights_of(model)
    images = samples(model, 5)
    monkeypatch.setattr(gemm, "has_small_kernels", lambda: was_there)
    prepared = prepare(model, weights)
    monkeypatch.setattr(gemm, "has_small_kernels", lambda: is_here)
    session = Inference(model, prepared, 2, reproducible=True)
    outputs = session(images)
    expected = inference_of(model, weights)(images)
    assert np.allclose(outputs, expected, atol=1e-5)
    assert session(images[:1]).tobytes() == outputs[:1].tobytes()
    session.close()


def test_inputs_of_another_shape_are_refused(inference_of):
    model = model_of()
    with pytest.raises(ShapeError, match=naming("uint8[1, 8, 8, 3]", "(N, 16, 16, 3)")):
        inference_of(model, weights_of(model))(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.fixture
def versions(inference_of):
    """A session that is warm and one that is bound to other weights by its plans; what each gives
    for the same three images, by sessions of their own."""
    model = model_of()
    first, second = (prepare(model, weights_of(model, seed)) for seed in (0, 1))
    session = inference_of(model, weights_of(model, 0), batch_size=4, threads=2)
    session.warm_up()
    other = session.rebound(second)
    expected = []
    for prepared in (first, second):
        alone = Inference(model, prepared, batch_size=4, threads=2)
        expected.append(alone(samples(model, 3)).tobytes())
        alone.close()
    assert expected[0] != expected[1]
    yield (session, other), expected
    other.close()


def test_other_weights_are_bound_to_the_plans_that_are_there(versions, monkeypatch):
    (session, other), expected = versions
    monkeypatch.setattr(inference, "compile", None)
    third = session.rebound(prepare(model_of(), weights_of(model_of(), 1)))
    inputs = samples(model_of(), 3)
    answers = [each(inputs).tobytes() for each in (session, other, third, session)]
    third.close()
    assert answers == [expected[0], expected[1], expected[1], expected[0]]
    assert other.buffer_bytes == session.buffer_bytes > 0


def test_sessions_that_share_plans_answer_in_different_threads(versions):
    sessions, expected = versions
    inputs = samples(model_of(), 3)
    wrong = []

    def answer(session, right):
        wrong.extend(1 for _ in range(100) if session(inputs).tobytes() != right)

    threads = [
        threading.Thread(target=answer, args=each) for each in zip(sessions, expected, strict=True)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_the_last_of_the_sessions_ends_the_threads(versions):
    (session, other), expected = versions

    def helpers():
        return [each for each in threading.enumerate() if each.name.startswith("pool-")]

    session.close()
    session.close()
    assert other(samples(model_of(), 3)).tobytes() == expected[1]
    assert helpers()
    other.close()
    assert not helpers()
    assert session.rebound(prepare(model_of(), weights_of(model_of()))) is None


def test_kernels_of_another_model_are_not_bound(versions, of_another_model):
    (session, _), expected = versions
    prepared, refusal = of_another_model
    with pytest.raises(ShapeError, match=refusal):
        session.rebound(prepared)
    assert session(samples(model_of(), 3)).tobytes() == expected[0]
