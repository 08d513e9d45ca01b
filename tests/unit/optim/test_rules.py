"""The update rules, held against plain scalar loops and against Keras's published definitions."""

import logging
import math
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from dist_net.errors import SettingError, ShapeError
from dist_net.ground.vector import AVERAGE
from dist_net.optim import (
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    RMSprop,
    UpdateRule,
    optimizer_named,
    start_rule,
)
from dist_net.optim.ranges import Floats, all_below
from dist_net.optim.rule import MIN_COMPILED, STEPS
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


def adam_by_hand(weight, gradients, decay=0.0):
    first = second = 0.0
    for index, (rate, gradient) in enumerate(zip(LEARNING_RATES, gradients, strict=True)):
        step = index + 1
        first = 0.7 * first + 0.3 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        corrected = rate * math.sqrt(1 - 0.95**step) / (1 - 0.7**step)
        weight = weight * (1 - rate * decay) - corrected * first / (math.sqrt(second) + 1e-3)
    return weight


def adagrad_by_hand(weight, gradients):
    accumulator = 0.25
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        accumulator = accumulator + gradient**2
        weight = weight - rate * gradient / math.sqrt(accumulator + 1e-3)
    return weight


def rmsprop_by_hand(weight, gradients):
    mean_square = 0.0
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        mean_square = 0.7 * mean_square + 0.3 * gradient**2
        weight = weight - rate * gradient / math.sqrt(mean_square + 1e-3)
    return weight


CASES = {
    "sgd": (SGD(), sgd_by_hand),
    "momentum": (Momentum(0.8), momentum_by_hand),
    "nesterov": (Nesterov(0.8), nesterov_by_hand),
    "adam": (Adam(0.7, 0.95, 1e-3), adam_by_hand),
    "adamw": (AdamW(0.7, 0.95, 1e-3, 0.2), partial(adam_by_hand, decay=0.2)),
    "adagrad": (AdaGrad(1e-3, 0.25), adagrad_by_hand),
    "rmsprop": (RMSprop(0.7, 1e-3), rmsprop_by_hand),
}


def run(rule: UpdateRule, weights: Floats, gradients: Floats) -> Floats:
    """Return the state after five steps, each from the state before into another vector."""
    state = rule.initial(weights)
    for rate, gradient in zip(LEARNING_RATES, gradients, strict=True):
        before, out = state.copy(), np.full_like(state, np.nan)
        rule.step(state, gradient, rate, out)
        np.testing.assert_array_equal(state, before)
        state = out
    return state


def after(rule: UpdateRule, weights: Floats, gradient: Floats, rate: float = 1.0) -> Floats:
    """Return the state after one step from ``weights``."""
    out = np.empty(rule.state_size, weights.dtype)
    rule.step(rule.initial(weights), gradient, rate, out)
    return out


@pytest.mark.parametrize("name", CASES)
def test_a_rule_equals_the_scalar_loop_in_float64(name: str) -> None:
    optimizer, by_hand = CASES[name]
    size = 1003
    random = np.random.default_rng(7)
    weights = random.standard_normal(size)
    gradients = random.standard_normal((len(LEARNING_RATES), size))
    gradients.flags.writeable = False

    state = run(optimizer.start(size, np.float64), weights, gradients)

    assert state[-1] == len(LEARNING_RATES)
    for index in (0, 1, 500, size - 1):
        expected = by_hand(float(weights[index]), [float(g) for g in gradients[:, index]])
        assert state[index] == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32_and_close_to_float64(name: str) -> None:
    optimizer, _ = CASES[name]
    random = np.random.default_rng(8)
    weights = random.standard_normal(1000)
    gradients = random.standard_normal((len(LEARNING_RATES), 1000))

    exact = run(optimizer.start(1000, np.float64), weights, gradients)
    single = run(optimizer.start(1000), weights.astype(np.float32), gradients.astype(np.float32))

    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "limits", [(), (3.0,), (0.0, 0.9), (3.0, 0.9)], ids=["", "clipped", "averaged", "both"]
)
@pytest.mark.parametrize("momenta", [(), (0.9, 0.5)], ids=["parameters", "buffers"])
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_loop_computes_what_numpy_does(
    name: str,
    momenta: tuple[float, ...],
    limits: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr("dist_net.optim.rule.MIN_COMPILED", 1003)
    optimizer, _ = CASES[name]
    shapes = (("kernel", (500, 2)), ("bias", (3,)), ("mean", (7,)), ("variance", (7,)))
    shapes = shapes[: 2 + len(momenta)]
    random = np.random.default_rng(10)
    size = sum(math.prod(shape) for _, shape in shapes)
    weights = random.standard_normal(size).astype(np.float32)
    gradients = random.standard_normal((len(LEARNING_RATES), size)).astype(np.float32)
    gradients.flags.writeable = False

    with caplog.at_level(logging.INFO):
        compiled = run(start_rule(optimizer, shapes, momenta, *limits), weights, gradients)
        monkeypatch.setitem(sys.modules, "dist_net.ground.compiling", None)
        plain = run(start_rule(optimizer, shapes, momenta, *limits), weights, gradients)

    loops = [line.split("loops=")[1] for line in caplog.messages if "loops=" in line]
    assert loops == ["compiled", "numpy"]
    np.testing.assert_array_equal(compiled.view(np.uint32), plain.view(np.uint32))


@pytest.fixture(params=["with numba", "without"])
def extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "dist_net.ground.compiling", None)
    else:
        pytest.importorskip("numba")
        monkeypatch.setattr("dist_net.optim.rule.MIN_COMPILED", 0)


def test_steps_of_a_short_vector_are_left_to_numpy(caplog: pytest.LogCaptureFixture) -> None:
    size = MIN_COMPILED - 1
    with caplog.at_level(logging.INFO):
        after(SGD().start(size), np.zeros(size, np.float32), np.ones(size, np.float32))
    assert "updates_begun rule=SGD loops=numpy" in caplog.text


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("large", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_from_a_gradient_that_is_not_finite_raises_nothing(name: str, large: float) -> None:
    """The worker computes on; the server refuses the result."""
    rule = optimizer_named(name).start(3)
    gradient = np.array([1, large, 1], np.float32)
    state = after(rule, np.ones(3, np.float32), gradient, 10.0)
    assert np.isfinite(state[[0, 2, -1]]).all()
    if not np.isfinite(large):
        assert not np.isfinite(state).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_large_element_counts_and_the_sum_of_many_does_not(dtype: type) -> None:
    vector = np.full(60_000, 1e17, dtype)
    assert all_below(2.0**64, vector)
    for large in (2.0**64, -(2.0**64), np.inf, np.nan):
        vector[-1] = large
        assert not all_below(2.0**64, vector)
        assert all_below(math.inf, vector) == math.isfinite(large)


class Sign(Optimizer):
    """w ← w - η sign(g): an optimizer that this package does not have."""

    def step(
        self, w: Floats, g: Floats, out: Floats, rate: float, scratch: Floats, *state: Floats
    ) -> None:
        np.subtract(w, rate * np.sign(g), out=out)


class Looped(Optimizer):
    """The same by a loop, which is compiled."""

    @staticmethod
    def loop(w, g, out, _old, _new, numbers):
        for i in range(len(w)):
            out[i] = w[i] - numbers[0] * np.sign(g[i])


class Changed(Adam):
    """Adam's state, and another step than its loop's."""

    rate = Optimizer.rate
    step = Sign.step


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("optimizer", [Sign, Looped, Changed])
def test_a_users_own_optimizer_computes_its_own_step(optimizer: type[Optimizer]) -> None:
    gradient = np.array([-7, 0, 0.1], np.float32)
    state = after(optimizer().start(3), np.ones(3, np.float32), gradient, 0.5)
    np.testing.assert_array_equal(state[:3], [1.5, 1, 0.5])


class Decayed(SGD):
    """A decay that the loop of another class does not know."""

    def decay(self, learning_rate: float) -> float:
        return learning_rate / 2


@pytest.mark.usefixtures("extra")
def test_a_users_own_decay_is_subtracted_before_the_step() -> None:
    gradient = np.array([-1, 0, 2], np.float32)
    state = after(Decayed().start(3), np.ones(3, np.float32), gradient, 0.5)
    np.testing.assert_array_equal(state[:3], [1.25, 0.75, -0.25])


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    "optimizer",
    [Momentum(0.9), Nesterov(0.9), Adam(beta2=0.99), RMSprop()],
    ids=lambda each: type(each).__name__,
)
def test_what_decays_does_not_become_subnormal(optimizer: Optimizer) -> None:
    rule = optimizer.start(100)
    gradient = np.linspace(-1, 1, 100, dtype=np.float32)
    state, following = rule.initial(np.zeros(100, np.float32)), np.empty(rule.state_size, "f4")
    for step in range(1, 10_001):  # 0.99**10_000 is 2e-44
        rule.step(state, gradient, 0.001, following)
        gradient[:] = 0
        state, following = following, state
        seen = state[100:-1][state[100:-1] != 0]
        assert (np.abs(seen) > 1e-37).all(), f"step {step}: {np.abs(seen).min()}"


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_may_lie_anywhere_in_a_message(name: str) -> None:
    optimizer, _ = CASES[name]
    weights = np.ones(10, np.float32)
    aligned = np.arange(10, dtype=np.float32)
    gradient = np.frombuffer(b"." + aligned.tobytes(), np.float32, offset=1)
    assert not gradient.flags.aligned
    expected, state = (after(optimizer.start(10), weights, each) for each in (aligned, gradient))
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_state_holds_all_that_the_next_step_needs(name: str) -> None:
    """Another rule of the same settings continues the run: a worker's, a resumed server's."""
    optimizer, _ = CASES[name]
    shapes, limits = (("w", (10,)), ("mean", (2,))), ((0.9,), 5.0, 0.9)
    rule, other = (start_rule(optimizer, shapes, *limits) for _ in range(2))
    gradients = np.random.default_rng(9).standard_normal((6, 12)).astype(np.float32)
    state = rule.initial(np.ones(12, np.float32))
    moved = state.copy()
    for step, gradient in enumerate(gradients):
        following = np.empty_like(state)
        rule.step(state, gradient, 0.1, following)
        state, following = following, np.empty_like(state)
        (rule if step < 3 else other).step(moved, gradient, 0.1, following)
        moved = following
    np.testing.assert_array_equal(moved, state)


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("name", CASES)
def test_several_rules_update_a_state_together_bit_for_bit(name: str, count: int) -> None:
    """With buffers, an average, and a limit of the norm; also an update that is not by element."""

    @dataclass(frozen=True)
    class ByNorm(SGD):
        def step(self, w: Floats, g: Floats, out: Floats, rate: float, *rest: Floats) -> None:
            np.subtract(w, rate * g / np.linalg.norm(g), out=out)

    for optimizer in (CASES[name][0], ByNorm()):
        shapes, limits = (("w", (50,)), ("mean", (7,))), ((0.9,), 3.0, 0.9)
        alone, *together = (start_rule(optimizer, shapes, *limits) for _ in range(count + 1))
        random = np.random.default_rng(9)
        state = alone.initial(random.standard_normal(57).astype(np.float32))
        gradient = random.standard_normal(57).astype(np.float32)
        expected, following = np.empty_like(state), np.full_like(state, np.nan)
        alone.step(state, gradient, 0.1, expected)
        for number, rule in enumerate(together):
            rule.keep_part(number, count)
            rule.step(state, gradient, 0.1, following)
        np.testing.assert_array_equal(following, expected)


def test_the_parts_of_a_state_are_named_for_a_checkpoint() -> None:
    parts = {
        name: set(optimizer.start(3).parts(np.zeros(optimizer.start(3).state_size, np.float32)))
        for name, optimizer in OPTIMIZERS.items()
    }
    assert parts == {
        "sgd": {STEPS},
        "momentum": {"velocity", STEPS},
        "nesterov": {"velocity", STEPS},
        "adam": {"mean", "mean_square", STEPS},
        "adamw": {"mean", "mean_square", STEPS},
        "adagrad": {"accumulator", STEPS},
        "rmsprop": {"mean_square", STEPS},
    }


def test_parts_are_views_that_cover_the_state_behind_the_models_vector() -> None:
    rule = start_rule(Adam(), (("w", (4,)), ("mean", (3,))), (0.9,), average_decay=0.9)
    assert rule.sizes == (4, 7, 2, 7 + 3 * 4 + 1)
    state = np.arange(rule.state_size, dtype=np.float32)
    parts = rule.parts(state)
    assert list(parts) == ["mean", "mean_square", AVERAGE, STEPS]
    np.testing.assert_array_equal(np.concatenate(list(parts.values())), state[rule.size :])
    parts[AVERAGE][:] = -1
    assert (state[15:19] == -1).all()


def test_a_new_state_has_taken_no_step() -> None:
    rule = UpdateRule(AdaGrad(initial_accumulator=0.25), 2, average_decay=0.5)
    np.testing.assert_array_equal(
        rule.initial(np.array([3, 4], np.float32)), [3, 4, 0.25, 0.25, 3, 4, 0]
    )


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_above_the_norm_is_scaled_down_to_it(name: str) -> None:
    optimizer, _ = CASES[name]
    random = np.random.default_rng(13)
    weights = random.standard_normal(100).astype(np.float32)
    small, large = random.standard_normal((2, 100)).astype(np.float32)
    small /= 2 * np.linalg.norm(small)
    large *= 30
    rule = UpdateRule(optimizer, 100, clip_norm=1.0)
    scaled = large * np.float32(1 / math.sqrt(np.vdot(large, large)))
    for given, expected in ((small, small), (large, scaled)):
        np.testing.assert_array_equal(
            after(rule, weights, given), after(optimizer.start(100), weights, expected)
        )


def test_a_gradient_is_clipped_though_its_square_overflows() -> None:
    rule = UpdateRule(SGD(), 2, clip_norm=5.0)
    state = after(rule, np.zeros(2, np.float32), np.array([3e30, -4e30], np.float32))
    np.testing.assert_allclose(state[:2], [-3, 4], rtol=1e-6)


def test_what_is_observed_for_buffers_does_not_count_in_the_norm() -> None:
    rule = start_rule(SGD(), (("w", (2,)), ("mean", (1,))), (0.5,), clip_norm=5.0)
    state = after(rule, np.zeros(3, np.float32), np.array([3, 4, 1000], np.float32))
    np.testing.assert_array_equal(state[:3], [-3, -4, 500])


# The average of the weights


def test_the_average_follows_the_weights_faster_at_first() -> None:
    size = 1003
    rule = UpdateRule(SGD(), size, average_decay=0.7)
    gradients = np.random.default_rng(0).standard_normal((40, size)).astype(np.float32)
    state, expected = rule.initial(np.zeros(size, np.float32)), np.zeros(size)
    for step, gradient in enumerate(gradients, 1):
        following = np.empty_like(state)
        rule.step(state, gradient, 0.1, following)
        state = following
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state[:size]
    np.testing.assert_allclose(rule.parts(state)[AVERAGE], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_training_never_reads_the_average(name: str) -> None:
    optimizer, _ = CASES[name]
    gradients = np.random.default_rng(1).standard_normal((len(LEARNING_RATES), 10)).astype("f4")
    weights = np.ones(10, np.float32)
    averaged = run(UpdateRule(optimizer, 10, average_decay=0.9), weights, gradients)
    plain = run(UpdateRule(optimizer, 10), weights, gradients)
    np.testing.assert_array_equal(averaged[: plain.size - 1], plain[:-1])


def test_limits_outside_their_range_are_refused() -> None:
    with pytest.raises(SettingError, match=naming("average_decay=1.0")):
        UpdateRule(SGD(), 5, average_decay=1.0)
    with pytest.raises(SettingError, match=naming("clip_norm=-1.0")):
        UpdateRule(SGD(), 5, clip_norm=-1.0)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_vector_of_another_length_is_refused(position: int, off: int) -> None:
    rule = Momentum(0.9).start(10, np.float64)  # a state of 21 elements
    lengths = [21, 10, 21]
    lengths[position] += off
    state, gradient, out = map(np.zeros, lengths)
    with pytest.raises(ShapeError, match=naming((lengths[position],), 10)):
        rule.step(state, gradient, 0.1, out)


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
        (lambda: RMSprop(rho=1.0), "rho=1.0"),
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
    assert optimizer_named(str(optimizer)) == optimizer


def test_only_the_recipes_own_optimizer_may_be_of_a_class_of_its_own() -> None:
    assert optimizer_named("Halving(share=0.5)", Halving()) == Halving()
    for text in ("Halving(share=0.4)", "Adam(beta1=x)", "Adam(beta1=2.0)", "Adam(b=1)", "", "(=("):
        with pytest.raises(SettingError, match="optimizer"):
            optimizer_named(text, Halving())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_along_the_shares_of_noise_are_as_long_on_average_as_one_along_the_whole(
    name: str,
) -> None:
    shares, size, steps = 4, 2000, 6
    optimizer = OPTIMIZERS[name]
    noise = np.random.default_rng(0).normal(scale=100, size=(steps, shares, size))

    def moved(gradients: Floats, share: float) -> Floats:
        """Return the change of the weights, from 0, by steps along the gradients."""
        rule = optimizer.start(size, np.float64)
        state = rule.initial(np.zeros(size))
        for gradient in gradients:
            out = np.empty_like(state)
            rule.step(state, gradient, 0.1, out, share)
            state = out
        return state[:size]

    whole = moved(noise.mean(1), 1.0)
    mean = np.mean([moved(noise[:, part], 1 / shares) for part in range(shares)], axis=0)
    assert np.linalg.norm(mean) == pytest.approx(np.linalg.norm(whole), rel=0.05)
    assert optimizer.rate_scale(1.0) == 1.0


def test_weights_decay_as_much_in_a_share_as_in_the_whole() -> None:
    rule = AdamW().start(3)
    states = np.empty((2, rule.state_size), np.float32)
    for out, share in zip(states, (1.0, 0.25), strict=True):
        rule.step(rule.initial(np.ones(3, np.float32)), np.zeros(3, np.float32), 0.5, out, share)
    np.testing.assert_array_equal(*states)
    assert (states[:, :3] == np.float32(1 - 0.5 * 0.004)).all()


def test_frozen_arrays_are_no_statistics() -> None:
    """Minibatches of a net without others may be divided further."""
    shapes = ("w", (4,)), ("frozen", (3,)), ("mean", (2,))
    assert not start_rule(Adam(), shapes[:1]).has_statistics
    assert not start_rule(Adam(), shapes[:2], (1.0,)).has_statistics
    assert start_rule(Adam(), shapes, (1.0, 0.9)).has_statistics
