"""Layers of sequences, group norm and pools over time: what they ignore, and their slopes."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff.check import check_gradients
from dist_net.data import records
from dist_net.errors import DTypeError, ParameterError, ShapeError
from dist_net.nn.inference import Inference, prepare
from dist_net.nn.sequences import Recurrent
from given_parameters import InFloat64
from naming import naming

RNG = np.random.default_rng(3)
LENGTHS = np.array([5, 2, 3])
PADDED = np.arange(5) < LENGTHS[:, None]  # (N, T) = (3, 5)
X = RNG.standard_normal((3, 5, 4))
MEMORY = RNG.standard_normal((3, 6, 4))
SHOWN = RNG.random((3, 5, 6)) < 0.6
SHOWN[..., 0] = True


def require_slopes(layer: InFloat64) -> None:
    """First and second derivatives agree with differences."""

    def whole(*floats: ad.Expression) -> ad.Expression:
        outputs = layer(*floats)
        return ad.concatenate([ad.reshape(each, (each.size,)) for each in outputs.values()])

    check_gradients(whole, *layer.floats.values(), rng=np.random.default_rng(0))


# Attention

ATTENTIONS = {
    "padded": (False, {"query": X, "mask": PADDED}),
    "padded and causal": (True, {"query": X, "mask": PADDED}),
    "cross": (False, {"query": X, "value": MEMORY}),
    "cross with a key": (False, {"query": X, "value": MEMORY, "key": MEMORY[::-1] + 1}),
    "cross, padded": (False, {"query": X, "value": MEMORY, "mask": SHOWN[:, 0]}),
    "a mask for each query": (False, {"query": X, "value": MEMORY, "mask": SHOWN}),
    "nothing but the query": (True, {"query": X}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_slopes_of_attention_are_those_of_differences(name: str) -> None:
    causal, inputs = ATTENTIONS[name]
    require_slopes(InFloat64(nn.MultiHeadAttention(2, causal), inputs))


def test_hidden_places_change_nothing_and_a_query_that_sees_none_is_finite() -> None:
    layer = nn.MultiHeadAttention(2)
    mask = PADDED & (LENGTHS > 2)[:, None]  # the second sample has no place to see
    given = InFloat64(layer, {"query": X, "value": X, "mask": mask})
    other = InFloat64(layer, {"query": X, "value": np.where(mask[..., None], X, 9.0), "mask": mask})
    ones = {"": np.ones_like(X)}
    first, second = (each.values_and_gradients(ones) for each in (given, other))
    np.testing.assert_array_equal(first[0][""][[0, 2]], second[0][""][[0, 2]])
    assert all(np.isfinite(each).all() for part in first for each in part.values())
    assert np.all(first[1]["value"][2, 3:] == 0)


def test_padding_does_not_reach_the_answers_of_a_short_sequence() -> None:
    layer = nn.MultiHeadAttention(2)
    whole = InFloat64(layer, {"query": X, "mask": PADDED}).values_and_gradients({})[0][""]
    short = InFloat64(layer, X[1:2, :2]).values_and_gradients({})[0][""]
    np.testing.assert_allclose(whole[1:2, :2], short, rtol=1e-12)


# Recurrent layers


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_the_slopes_of_states_and_masks_are_those_of_differences(kind: type[Recurrent]) -> None:
    one = kind(2, return_state=True)
    initial = {name: RNG.standard_normal((2, 4)) for name in one.STATES}
    inputs = {"sequence": X[:2, :2, :2], "mask": np.array([[True, True], [True, False]])}
    require_slopes(InFloat64(nn.Bidirectional(one), inputs | initial))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_call_from_the_last_state_continues_the_sequence(kind: type[Recurrent]) -> None:
    layer = kind(4, return_sequences=True, return_state=True)
    whole = InFloat64(layer, X).values_and_gradients({})[0]
    first = InFloat64(layer, X[:, :2]).values_and_gradients({})[0]
    outputs = first.pop("output")
    rest = InFloat64(layer, {"sequence": X[:, 2:]} | first).values_and_gradients({})[0]
    np.testing.assert_allclose(whole["output"][:, :2], outputs, rtol=1e-12)
    np.testing.assert_allclose(whole["output"][:, 2:], rest["output"], rtol=1e-12)
    for name in layer.STATES:
        np.testing.assert_allclose(whole[name], rest[name], rtol=1e-12)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_padding_changes_no_state(kind: type[Recurrent]) -> None:
    layer = nn.Bidirectional(kind(4, return_state=True))
    padded = InFloat64(layer, {"sequence": X, "mask": PADDED}).values_and_gradients({})[0]
    for i, length in enumerate(LENGTHS):
        short = InFloat64(layer, X[i : i + 1, :length]).values_and_gradients({})[0]
        for name, value in short.items():
            np.testing.assert_allclose(padded[name][i : i + 1], value, rtol=1e-12)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_reversed_layer_reads_backwards_and_answers_in_order(kind: type[Recurrent]) -> None:
    forwards, backwards = (kind(4, return_sequences=True, reverse=each) for each in (False, True))
    expected = InFloat64(forwards, X[:, ::-1]).values_and_gradients({})[0][""][:, ::-1]
    found = InFloat64(backwards, X).values_and_gradients({})[0][""]
    np.testing.assert_array_equal(found, expected)


# Convolution, pools and norms


def test_convolution_and_pools_along_t_are_those_of_each_window() -> None:
    windows = np.lib.stride_tricks.sliding_window_view(X, 3, 1)  # (N, T', C, 3)
    layer = InFloat64(nn.Conv1D(6, 3, padding="valid"), X)
    kernel, bias = layer.parameters["kernel"][0], layer.parameters["bias"]
    expected = {
        layer: np.einsum("ntck,kcf->ntf", windows, kernel) + bias,
        InFloat64(nn.MaxPool1D(3, 1), X): windows.max(-1),
        InFloat64(nn.AveragePool1D(3, 1), X): windows.mean(-1),
        InFloat64(nn.MaxPool1D(3), X): windows[:, ::3].max(-1),
    }
    for each, wanted in expected.items():
        np.testing.assert_allclose(each.values_and_gradients({})[0][""], wanted, rtol=1e-12)
    require_slopes(layer)


def test_a_causal_convolution_sees_no_later_step() -> None:
    layer = InFloat64(nn.Conv1D(3, 3, padding=((0, 0), (2, 0))), X)
    whole = layer.values_and_gradients({})[0][""]
    changed = InFloat64(layer._layer, np.where(np.arange(5)[:, None] < 3, X, 9.0))
    assert whole.shape == (3, 5, 3)
    found = changed.values_and_gradients({})[0][""]
    np.testing.assert_array_equal(found[:, :3], whole[:, :3])
    assert np.all(found[:, 3:] != whole[:, 3:])


def test_global_pools_reduce_maps_and_volumes() -> None:
    x = RNG.standard_normal((2, 3, 4, 2, 5))
    for layer, reduced in ((nn.GlobalMaxPool(), x.max), (nn.GlobalAveragePool(), x.mean)):
        found = InFloat64(layer, x).values_and_gradients({})[0][""]
        np.testing.assert_allclose(found, reduced((1, 2, 3)), rtol=1e-12)


def test_the_mean_over_t_leaves_padding_out() -> None:
    mask = PADDED & (LENGTHS != 3)[:, None]
    layer = InFloat64(nn.GlobalAveragePool(), {"sequence": X, "mask": mask})
    found = layer.values_and_gradients({})[0][""]
    np.testing.assert_allclose(found, [X[0].mean(0), X[1, :2].mean(0), np.zeros(4)], rtol=1e-12)
    require_slopes(layer)


def test_each_group_has_mean_0_and_variance_1() -> None:
    ours = InFloat64(nn.GroupNorm(2, epsilon=1e-12), X)
    gamma, beta = ours.parameters.values()
    found = (ours.values_and_gradients({})[0][""] - beta) / gamma
    of_group = found.reshape(3, 5, 2, 2)
    np.testing.assert_allclose(of_group.mean((1, 3)), 0, atol=1e-10)
    np.testing.assert_allclose(of_group.var((1, 3)), 1, rtol=1e-6)


def test_inference_sessions_compute_layers_of_sequences() -> None:
    heads = {
        "padded": nn.Bidirectional(nn.LSTM(3, return_sequences=True)),
        "mean": nn.GlobalAveragePool(),
        "best": nn.Lambda(lambda x: ad.top_k(ad.var(x["sequence"], 1, ddof=1), 2)[0]),
    }
    inputs = records(sequence=X.astype(np.float32), mask=PADDED)
    model = nn.Model(nn.NamedOutputs(heads), (), "mse", inputs.dtype)
    model.weights = model.layout.initial(np.random.default_rng(0))
    prepared = prepare(model, model.weights)
    for is_reproducible in (False, True):
        with closing(Inference(model, prepared, reproducible=is_reproducible)) as session:
            found, wanted = session(inputs), model.predict(inputs)
        for name in heads:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_a_network_learns_from_steps_that_its_mask_shows() -> None:
    steps = RNG.integers(0, 2, (300, 6, 1)).astype(np.float32)
    mask = np.arange(6) < RNG.integers(1, 7, (300, 1))
    labels = ((steps[..., 0] > 0) & mask).any(1).astype(np.int64)
    inputs = records(sequence=steps, mask=mask)
    network = nn.Sequential(nn.Bidirectional(nn.GRU(6)), nn.Dense(2))
    model = nn.Model(network, (), input_dtype=inputs.dtype)
    dist_net.fit(model, inputs, labels, epochs=15, learning_rate=0.02)
    assert model.evaluate(inputs, labels)["accuracy"] > 0.95


# What is refused


def refused(layer: nn.Layer, **fields: tuple[int, ...]) -> None:
    bools = {"mask"}
    inputs = {
        name: ad.variable(name, shape, np.bool_ if name in bools else np.float32)
        for name, shape in fields.items()
    }
    layer(ad.record(**inputs) if len(fields) > 1 else next(iter(inputs.values())), nn.Scope())


@pytest.mark.parametrize(
    ("layer", "fields", "named"),
    [
        (nn.MultiHeadAttention(2), {"query": (3, 5, 4), "mask": (3, 6)}, ["mask (3, 6)"]),
        (nn.MultiHeadAttention(2), {"query": (3, 5, 4), "value": (3, 6, 2)}, ["value (3, 6, 2)"]),
        (nn.MultiHeadAttention(2), {"query": (3,)}, ["query (3,)"]),
        (nn.MultiHeadAttention(2), {"query": (3, 5, 4), "masks": (3, 5)}, ["masks", "mask"]),
        (nn.GRU(2), {"sequence": (3, 5, 4), "state": (3, 4)}, ["states (N, 2)", "state (3, 4)"]),
        (nn.GRU(2), {"sequence": (3, 5, 4), "cell": (3, 2)}, ["cell", "state"]),
        (nn.LSTM(2), {"sequence": (3, 5, 4), "mask": (3, 4)}, ["mask (3, 4)"]),
        (nn.LSTM(2), {"x": (3,)}, ["(N, T, features)", "(3,)"]),
        (nn.GlobalAveragePool(), {"x": (3, 4)}, ["GlobalAveragePool", (3, 4)]),
        (nn.GlobalMaxPool(), {"x": (3, 4)}, ["GlobalMaxPool", (3, 4)]),
        (nn.Conv1D(2, 3), {"x": (3, 4, 5, 6)}, ["Conv1D", "(N, T, C)", (3, 4, 5, 6)]),
        (nn.MaxPool1D(2), {"x": (3, 4)}, ["MaxPool1D", (3, 4)]),
        (nn.AveragePool1D(9), {"x": (3, 4, 2)}, [(1, 9), (1, 4)]),
        (nn.GroupNorm(3), {"x": (3, 5, 4)}, ["GroupNorm", "3 groups", (3, 5, 4)]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    layer: nn.Layer, fields: dict[str, tuple[int, ...]], named: list[Any]
) -> None:
    with pytest.raises(ShapeError, match=naming(*named)):
        refused(layer, **fields)


def test_a_mask_has_bools_and_both_directions_a_recurrent_layer() -> None:
    inputs = ad.record(sequence=ad.variable("x", (3, 5, 4)), mask=ad.variable("m", (3, 5)))
    for layer in (nn.GRU(2), nn.GlobalAveragePool()):
        with pytest.raises(DTypeError, match=naming("bools", "float32")):
            layer(inputs, nn.Scope())
    with pytest.raises(ParameterError, match=naming("Bidirectional", "Dense", "GRU(8)")):
        nn.Bidirectional(nn.Dense(3))  # type: ignore[arg-type]
