"""GRU and LSTM against PyTorch and finite differences, and the size of their plans."""

import numpy as np
import pytest

import dist_net
from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff.check import check_gradients
from dist_net.errors import GradientError, ShapeError
from dist_net.nn.sequences import Recurrent
from given_parameters import GivenParameters
from naming import naming

LAYERS = [nn.GRU, nn.LSTM]


def parameters(layer: Recurrent, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters for two features."""
    width = layer.GATES * layer.units
    shapes = {
        "input/kernel": (2, width),
        "input/bias": (width,),
        "recurrent_kernel": (layer.units, width),
        "recurrent_bias": (width,),
    }
    return {name: random.standard_normal(shape) * 0.5 for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_first_and_second_derivatives_agree_with_differences(kind: type[Recurrent]) -> None:
    random, layer = np.random.default_rng(1), kind(2)
    x, arrays = random.standard_normal((2, 3, 2)), parameters(layer, random)

    def build(x: ad.Expression, *given: ad.Expression) -> ad.Expression:
        return layer(x, GivenParameters(dict(zip(arrays, given, strict=True))))

    check_gradients(build, x, *arrays.values(), rng=random)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_compiled_training_of_an_lstm_computes_the_same(
    steps: int, return_sequences: bool, reverse: bool
) -> None:
    pytest.importorskip("numba", reason="numba is not installed (the extra `fast`)")
    layer = nn.LSTM(16, return_sequences, reverse=reverse)
    found = []
    for training in (False, True):
        x, scope = ad.variable("x", (3, steps, 5)), nn.Scope(training=training)
        output = layer(x, scope)
        arrays = {
            name: 4 * np.random.default_rng(0).standard_normal(each.shape, np.float32)
            for name, each in {**scope.variables, "x": x}.items()
        }
        loss = ad.sum(ad.square(output))
        variables = [*scope.variables.values(), x]
        found.append(ad.evaluate([output, *ad.gradients(loss, variables)], **arrays))
    for expected, value in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    arrays["x"][1, -1] = np.nan
    values, *_ = ad.evaluate([output], **arrays)
    assert np.isnan(values[1]).any()
    assert not np.isnan(values[[0, 2]]).any()
    (slope,) = ad.gradients(loss, [x])
    with pytest.raises(GradientError, match=naming("compiled LSTM", "training=False")):
        ad.gradients(ad.sum(slope), [x])


@pytest.mark.parametrize("kind", LAYERS)
def test_the_last_output_is_that_of_the_sequence(kind: type[Recurrent]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 2)).astype(np.float32)
    last, sequence = (
        nn.Model(kind(4, return_sequences=each), (5, 2), input_dtype=np.float32)
        for each in (False, True)
    )
    last.weights = sequence.weights = last.layout.initial(np.random.default_rng(0))
    assert sequence.output_shape == (5, 4)
    np.testing.assert_array_equal(last.predict(x), sequence.predict(x)[:, -1])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_plan_is_linear_in_the_number_of_steps(kind: type[Recurrent]) -> None:
    def calls(steps: int) -> int:
        x, scope = ad.variable("x", (2, steps, 3)), nn.Scope()
        loss = ad.sum(kind(4)(x, scope))
        plan = ad.compile([loss, *ad.gradients(loss, list(scope.variables.values()))])
        arrays = {name: np.zeros(each.shape, np.float32) for name, each in plan.variables.items()}
        return len(plan.bind(arrays))

    assert calls(30) - calls(20) == calls(20) - calls(10)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_sequence_is_labelled_by_its_past_where_labels_are_not_ignored(
    kind: type[Recurrent],
) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 2, (400, 8, 1)).astype(np.float32)
    labels = np.cumsum(x[..., 0], 1).astype(np.int64) % 2  # the parity so far
    is_shown = random.random(labels.shape) < 0.5
    network = nn.Sequential(kind(12, return_sequences=True), nn.Dense(2))
    model = nn.Model(network, (8, 1), nn.Weighted("cross_entropy_of_logits"), np.float32)
    dist_net.fit(model, x, np.where(is_shown, labels, -1), epochs=30, learning_rate=0.02)
    assert np.mean(model.predict(x).argmax(-1) == labels) > 0.98


@pytest.mark.parametrize("shape", [(2, 3), (2, 0, 3), (2, 3, 4, 5), (1, 10_001, 1)])
def test_what_is_no_sequence_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=naming("GRU", "(N, T, features)", shape)):
        nn.GRU(4)(ad.variable("x", shape), nn.Scope())
    with pytest.raises(ShapeError, match=naming("LSTM: units", 0)):
        nn.LSTM(0)
