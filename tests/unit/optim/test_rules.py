"""The update rules, held against plain scalar loops and against Keras's published definitions."""

import logging
import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from dist_net.errors import SettingError, ShapeError
from dist_net.optim import (
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    UpdateRule,
    optimizer_named,
    parse_optimizer,
    start_rule,
)
from dist_net.optim.ranges import all_below
from dist_net.optim.rule import MIN_COMPILED, STRIP_LENGTH, strips_of
from naming import naming

LEARNING_RATES = (0.1, 0.1, 0.03, 0.2, 0.05)
"""It changes on the way: there the definitions of Keras and of PyTorch differ."""


def sgd_by_hand(weight, gradients):
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        weight = weight - rate * gradient
    return weight


def momentum_by_hand(weight, gradients):
    velocity = 0.0
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        velocity = 0.8 * velocity - rate * gradient
        weight = weight + velocity
    return weight


def nesterov_by_hand(weight, gradients):
    velocity = 0.0
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        velocity = 0.8 * velocity - rate * gradient
        weight = weight + 0.8 * velocity - rate * gradient
    return weight


def adam_by_hand(weight, gradients):
    first = second = 0.0
    for index, (rate, gradient) in enumerate(zip(LEARNING_RATES, gradients, strict=True)):
        step = index + 1
        first = 0.7 * first + 0.3 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        corrected = rate * math.sqrt(1 - 0.95**step) / (1 - 0.7**step)
        weight = weight - corrected * first / (math.sqrt(second) + 1e-3)
    return weight


def adamw_by_hand(weight, gradients):
    first = second = 0.0
    for index, (rate, gradient) in enumerate(zip(LEARNING_RATES, gradients, strict=True)):
        step = index + 1
        first = 0.7 * first + 0.3 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        corrected = rate * math.sqrt(1 - 0.95**step) / (1 - 0.7**step)
        weight = weight * (1 - rate * 0.2) - corrected * first / (math.sqrt(second) + 1e-3)
    return weight


def adagrad_by_hand(weight, gradients):
    accumulator = 0.25
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        accumulator = accumulator + gradient**2
        weight = weight - rate * gradient / math.sqrt(accumulator + 1e-3)
    return weight


CASES = {
    "sgd": (SGD(), sgd_by_hand),
    "momentum": (Momentum(0.8), momentum_by_hand),
    "nesterov": (Nesterov(0.8), nesterov_by_hand),
    "adam": (Adam(0.7, 0.95, 1e-3), adam_by_hand),
    "adamw": (AdamW(0.7, 0.95, 1e-3, 0.2), adamw_by_hand),
    "adagrad": (AdaGrad(1e-3, 0.25), adagrad_by_hand),
}


def run(optimizer: Optimizer, weights, gradients, in_place: bool):
    """Five updates; out of place the result alternates between two other buffers."""
    rule = optimizer.start(weights.size, weights.dtype)
    current = weights.copy()
    buffers = [current] if in_place else [np.full_like(weights, np.nan) for _ in range(2)]
    for index, (rate, gradient) in enumerate(zip(LEARNING_RATES, gradients, strict=True)):
        out = buffers[index % len(buffers)]
        before = current.copy()
        rule.update(current, [gradient], out, [rate], index + 1)
        if not in_place:
            np.testing.assert_array_equal(current, before)
        current = out
    return current


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_equals_the_scalar_loop_in_float64(name, in_place):
    optimizer, by_hand = CASES[name]
    size = 2 * STRIP_LENGTH + 3  # two strips of unequal length
    random = np.random.default_rng(7)
    weights = random.standard_normal(size)
    gradients = random.standard_normal((len(LEARNING_RATES), size))
    gradients.flags.writeable = False

    updated = run(optimizer, weights, gradients, in_place)

    for index in (0, 1, STRIP_LENGTH, STRIP_LENGTH + 1, STRIP_LENGTH + 2, size - 1):
        expected = by_hand(float(weights[index]), [float(g) for g in gradients[:, index]])
        assert updated[index] == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32_and_close_to_float64(name):
    optimizer, _ = CASES[name]
    random = np.random.default_rng(8)
    weights = random.standard_normal(1000)
    gradients = random.standard_normal((len(LEARNING_RATES), 1000))

    exact = run(optimizer, weights, gradients, in_place=True)
    single = run(optimizer, weights.astype(np.float32), gradients.astype(np.float32), True)

    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_loop_computes_what_numpy_does(name, monkeypatch, caplog):
    pytest.importorskip("numba")
    monkeypatch.setattr("dist_net.optim.rule.MIN_COMPILED", 1003)
    optimizer, _ = CASES[name]
    random = np.random.default_rng(10)
    weights = random.standard_normal(1003).astype(np.float32)
    gradients = random.standard_normal((len(LEARNING_RATES), 1003)).astype(np.float32)
    gradients.flags.writeable = False

    with caplog.at_level(logging.INFO):
        compiled = run(optimizer, weights, gradients, in_place=False)
        monkeypatch.setitem(sys.modules, "dist_net.optim.compiled", None)
        plain = run(optimizer, weights, gradients, in_place=False)

    loops = [line.split("loops=")[1] for line in caplog.messages if "loops=" in line]
    assert loops == ["compiled", "numpy"]
    np.testing.assert_array_equal(compiled, plain)


@pytest.mark.parametrize("together", [2, 3, 4])  # of so many no loop is compiled
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_steps_taken_together_give_what_they_give_in_turn(name, in_place, together):
    optimizer, _ = CASES[name]
    random = np.random.default_rng(11)
    size = STRIP_LENGTH * 2 + 3
    weights = random.standard_normal(size).astype(np.float32)
    gradients = random.standard_normal((5, size)).astype(np.float32)
    rule, rule_together = optimizer.start(size), optimizer.start(size)

    expected = weights
    for index, (rate, gradient) in enumerate(zip(LEARNING_RATES, gradients, strict=True)):
        following = np.empty_like(weights)
        rule.update(expected, [gradient], following, [rate], index + 1)
        expected = following
    current = weights.copy()
    edges = sorted({0, 1, 1 + together, 5})
    for step in map(slice, edges, edges[1:]):
        out = current if in_place else np.full_like(weights, np.nan)
        number = step.start + 1
        rule_together.update(current, gradients[step], out, LEARNING_RATES[step], number)
        current = out

    np.testing.assert_array_equal(current, expected)
    for key, vector in rule.state.items():
        np.testing.assert_array_equal(rule_together.state[key], vector)


@pytest.fixture(params=["with numba", "without"])
def extra(request, monkeypatch):
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "dist_net.optim.compiled", None)
    else:
        pytest.importorskip("numba")
        monkeypatch.setattr("dist_net.optim.rule.MIN_COMPILED", 0)


def test_steps_of_a_short_vector_are_left_to_numpy(caplog):
    with caplog.at_level(logging.INFO):
        SGD().start(MIN_COMPILED - 1)
    assert "updates_begun rule=SGD loops=numpy" in caplog.text


LARGE = {
    "one of 3e19": (np.array([1, 3e19, 1]), True),
    "60,000 of 1e17": (np.full(60_000, 1e17), True),
    "one whose square is none": (np.array([1, 1, 1e25]), False),
    "minus infinity": (np.array([-np.inf, 1, 1]), False),
    "not a number": (np.array([1, np.nan, 1]), False),
}


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_taken_where_all_that_it_gives_is_finite(name, case, count, in_place):
    large, is_taken = LARGE[case]
    large = large.astype(np.float32)
    if case == "one of 3e19" and name in ("adam", "adamw", "adagrad"):
        is_taken = False  # its square is in their state
    rule = optimizer_named(name).start(large.size)
    weights = np.ones(large.size, np.float32)
    rule.update(weights.copy(), [weights], weights, [0.1], 1)
    before = {key: vector.copy() for key, vector in rule.state.items()}
    gradients = [np.ones_like(large)] * (count - 1) + [large]
    out = weights if in_place else np.empty_like(weights)

    taken = rule.update(weights, gradients, out, [0.01] * count, 2, if_finite=True)

    assert taken == is_taken
    if taken:
        assert np.isfinite(out).all()
        assert all(np.isfinite(vector).all() for vector in rule.state.values())
    else:
        for key, vector in before.items():
            np.testing.assert_array_equal(rule.state[key], vector)


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "adamw", "adagrad"])
def test_a_state_that_would_overflow_is_kept_from_it(name):
    rule = optimizer_named(name).start(2)
    for vector in rule.state.values():
        vector[:] = np.finfo(np.float32).max
    before = {key: vector.copy() for key, vector in rule.state.items()}
    weights, out = np.ones(2, np.float32), np.empty(2, np.float32)
    gradient = np.full(2, -1e19, np.float32)
    rate = 1e38 if name.startswith("adam") else 1e20
    assert not rule.update(weights, [gradient] * 2, out, [rate] * 2, 1, if_finite=True)
    np.testing.assert_array_equal(weights, 1)
    for key, vector in before.items():
        np.testing.assert_array_equal(rule.state[key], vector)


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_checked_is_the_same_step(name):
    random = np.random.default_rng(12)
    size = 2 * STRIP_LENGTH + 3
    weights = random.standard_normal(size).astype(np.float32)
    gradients = random.standard_normal((4, size)).astype(np.float32)
    outs, states = [], []
    for if_finite in (True, False):
        rule, current = optimizer_named(name).start(size), weights
        for step, (gradient, rate) in enumerate(zip(gradients, LEARNING_RATES, strict=False), 1):
            following = np.empty_like(weights)
            assert rule.update(current, [gradient], following, [rate], step, if_finite=if_finite)
            current = following
        outs.append(current)
        states.append(list(rule.state.values()))
    np.testing.assert_array_equal(*outs)
    for checked, unchecked in zip(*states, strict=True):
        np.testing.assert_array_equal(checked, unchecked)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_large_element_counts_and_the_sum_of_many_does_not(dtype):
    vector = np.full(60_000, 1e17, dtype)
    assert all_below(2.0**64, vector)
    for large in (2.0**64, -(2.0**64), np.inf, np.nan):
        vector[-1] = large
        assert not all_below(2.0**64, vector)
        assert all_below(math.inf, vector) == math.isfinite(large)


class Sign(Optimizer):
    """w ← w - η sign(g): an optimizer that this package does not have."""

    loop = "sign"

    def step(self, w, g, out, rate, scratch, *state):
        np.subtract(w, rate * np.sign(g), out=out)


class Unnamed(Optimizer):
    """The same without a name for its loop."""

    step = Sign.step


class Changed(Adam):
    """Adam's state and its loop's name, and another step."""

    rate = Optimizer.rate
    step = Sign.step


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("optimizer", [Sign, Unnamed, Changed])
@pytest.mark.parametrize("if_finite", [True, False])
def test_an_optimizer_of_ones_own_is_computed_as_it_says(optimizer, if_finite):
    own = optimizer().start(3)
    weights, out = np.ones(3, np.float32), np.empty(3, np.float32)
    gradient = np.array([-7, 0, 0.1], np.float32)
    assert own.update(weights, [gradient], out, [0.5], 1, if_finite=if_finite)
    np.testing.assert_array_equal(out, [1.5, 1, 0.5])
    gradient[0] = np.nan
    assert not own.update(weights, [gradient], out, [0.5], 2, if_finite=True)


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    "optimizer",
    [Momentum(0.9), Nesterov(0.9), Adam(beta2=0.99)],
    ids=lambda each: type(each).__name__,
)
def test_what_decays_does_not_become_subnormal(optimizer):
    rule = optimizer.start(100)
    gradient = np.linspace(-1, 1, 100, dtype=np.float32)
    weights, following = np.zeros(100, np.float32), np.zeros(100, np.float32)
    for step in range(1, 10_001):  # 0.99**10_000 is 2e-44
        rule.update(weights, [gradient], following, [0.001], step)
        gradient[:] = 0
        weights, following = following, weights
        for vector in rule.state.values():
            seen = vector[vector != 0]
            assert (np.abs(seen) > 1e-37).all(), f"step {step}: {np.abs(seen).min()}"


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_may_lie_anywhere_in_a_message(name):
    optimizer, _ = CASES[name]
    weights = np.ones(10, np.float32)
    aligned = np.arange(10, dtype=np.float32)
    message = b"." + aligned.tobytes()
    gradient = np.frombuffer(message, np.float32, offset=1)
    assert not gradient.flags.aligned

    expected, updated = np.empty_like(weights), np.empty_like(weights)
    optimizer.start(10).update(weights, [aligned], expected, [0.1], 1)
    optimizer.start(10).update(weights, [gradient], updated, [0.1], 1)

    np.testing.assert_array_equal(updated, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_restored_state_continues_the_same_run(name):
    optimizer, _ = CASES[name]
    random = np.random.default_rng(9)
    weights = random.standard_normal(10).astype(np.float32)
    gradients = random.standard_normal((6, 10)).astype(np.float32)
    rule = optimizer.start(10)
    for step in (1, 2, 3):
        rule.update(weights, [gradients[step - 1]], weights, [0.1], step)

    resumed, resumed_weights = optimizer.start(10), weights.copy()
    for key, saved in rule.state.items():
        resumed.state[key][:] = saved
    for step in (4, 5, 6):
        rule.update(weights, [gradients[step - 1]], weights, [0.1], step)
        resumed.update(resumed_weights, [gradients[step - 1]], resumed_weights, [0.1], step)

    np.testing.assert_array_equal(weights, resumed_weights)


def test_the_state_is_what_a_checkpoint_has_to_keep():
    states = {name: set(optimizer.start(3).state) for name, optimizer in OPTIMIZERS.items()}
    assert states == {
        "sgd": set(),
        "momentum": {"velocity"},
        "nesterov": {"velocity"},
        "adam": {"mean", "mean_square"},
        "adamw": {"mean", "mean_square"},
        "adagrad": {"accumulator"},
    }


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_above_the_norm_is_scaled_down_to_it(name):
    optimizer, _ = CASES[name]
    random = np.random.default_rng(13)
    weights = random.standard_normal(100).astype(np.float32)
    small, large = random.standard_normal((2, 100)).astype(np.float32)
    small /= 2 * np.linalg.norm(small)
    large *= 30
    clipped, expected = np.empty_like(weights), np.empty_like(weights)
    rule = UpdateRule(optimizer, 100, clip_norm=1.0)
    rule.update(weights, [small, large], clipped, [0.1, 0.1], 1)
    scaled = large * np.float32(1 / math.sqrt(np.vdot(large, large)))
    optimizer.start(100).update(weights, [small, scaled], expected, [0.1, 0.1], 1)
    np.testing.assert_array_equal(clipped, expected)


def test_a_gradient_is_clipped_whose_square_overflows_and_refused_if_it_is_infinite():
    weights, out = np.zeros(2, np.float32), np.empty(2, np.float32)
    rule = UpdateRule(SGD(), 2, clip_norm=5.0)
    large = np.array([3e30, -4e30], np.float32)
    assert rule.update(weights, [large], out, [1.0], 1, if_finite=True)
    np.testing.assert_allclose(out, [-3, 4], rtol=1e-6)
    large[0] = np.inf
    assert not rule.update(weights, [large], out, [1.0], 1, if_finite=True)


def test_what_is_observed_for_buffers_does_not_count_in_the_norm():
    rule = start_rule(SGD(), (("w", (2,)), ("mean", (1,))), (0.5,), clip_norm=5.0)
    weights, gradient = np.zeros(3, np.float32), np.array([3, 4, 1000], np.float32)
    rule.update(weights, [gradient], weights, [1.0], 1)
    np.testing.assert_array_equal(weights, [-3, -4, 500])


@pytest.mark.parametrize("size", [0, 1, STRIP_LENGTH, 2 * STRIP_LENGTH + 3, 11 * STRIP_LENGTH - 1])
def test_strips_cover_every_element_once_and_fit_the_cache(size):
    strips = strips_of(size)
    assert [index for strip in strips for index in (strip.start, strip.stop)][1:-1] == [
        edge for strip in strips[:-1] for edge in (strip.stop, strip.stop)
    ]
    assert (strips[0].start, strips[-1].stop) == (0, size)
    assert max(strip.stop - strip.start for strip in strips) < 2 * STRIP_LENGTH


@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize("wrong", [9, 11])
def test_a_vector_of_another_length_is_refused(position, wrong):
    weights, *gradients, out = [np.zeros(wrong if i == position else 10) for i in range(4)]
    with pytest.raises(ShapeError, match=rf"\({wrong},\)"):
        SGD().start(10, np.float64).update(weights, gradients, out, [0.1, 0.1], 1)


def test_an_optimizer_is_found_by_name():
    assert optimizer_named("momentum") == Momentum(momentum=0.9)


def test_an_unknown_name_is_refused_with_the_one_that_was_meant_or_all():
    with pytest.raises(SettingError, match=naming("'adma'", "adam")):
        optimizer_named("adma")
    with pytest.raises(
        SettingError, match=naming("'lion'", "sgd", "momentum", "adam", "adamw", "adagrad")
    ):
        optimizer_named("lion")


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (lambda: Momentum(1.0), "momentum=1.0"),
        (lambda: Nesterov(-0.1), "momentum=-0.1"),
        (lambda: Adam(beta1=1.5), "beta1=1.5"),
        (lambda: Adam(beta2=float("nan")), "beta2=nan"),
        (lambda: Adam(epsilon=0.0), "epsilon=0.0"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay=-0.1"),
        (lambda: AdaGrad(epsilon=float("inf")), "epsilon=inf"),
        (lambda: AdaGrad(initial_accumulator=-1.0), "initial_accumulator=-1.0"),
    ],
)
def test_settings_outside_their_range_are_refused(build, setting):
    with pytest.raises(SettingError, match=naming(setting)):
        build()


@dataclass(frozen=True)
class Halving(SGD):
    share: float = 0.5


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS.values(), Adam(beta1=0.8, epsilon=1e-5)])
def test_an_optimizer_is_parsed_from_its_text(optimizer: Optimizer) -> None:
    assert parse_optimizer(str(optimizer), SGD()) == optimizer


def test_only_the_recipes_own_optimizer_may_be_of_a_class_of_its_own() -> None:
    assert parse_optimizer("Halving(share=0.5)", Halving()) == Halving()
    for text in ("Halving(share=0.4)", "Adam(beta1=x)", "Adam(beta1=2.0)", "Adam(b=1)", "", "(=("):
        with pytest.raises(SettingError, match="optimizer"):
            parse_optimizer(text, Halving())
