"""Schedules of the learning rate."""

import math

import numpy as np
import pytest

from dist_net.errors import SettingError
from dist_net.optim import ConstantRate, Cosine, LearningRate, StepDecay, WarmUp
from naming import naming


def test_constant_leaves_the_rate_alone():
    assert [ConstantRate()(epoch, 5) for epoch in (0.0, 2.5, 5.0)] == [1.0, 1.0, 1.0]


def test_step_falls_at_the_end_of_every_interval():
    step = StepDecay(every_epochs=2, factor=0.5)
    assert [step(epoch, 5) for epoch in (0.0, 1.99, 2.0, 3.99, 4.0)] == [1, 1, 0.5, 0.5, 0.25]


def test_cosine_goes_from_one_to_final():
    cosine = Cosine(final=0.2)
    assert [cosine(epoch, 4) for epoch in (0.0, 1.0, 2.0, 4.0, 9.0)] == pytest.approx(
        [1.0, 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 0.6, 0.2, 0.2]
    )


def test_warm_up_rises_in_a_line_and_hands_over_what_is_left():
    schedule = WarmUp(epochs=2, then=Cosine())
    assert [schedule(epoch, 6) for epoch in (0.0, 0.5, 2.0, 4.0, 6.0)] == pytest.approx(
        [0.0, 0.25, 1.0, 0.5, 0.0]
    )


def test_warm_up_alone_then_stays():
    assert WarmUp(epochs=1)(3.0, 5) == 1.0


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_is_all_warm_up_ends_without_dividing_by_zero(epochs):
    schedule = WarmUp(epochs=2, then=Cosine())
    assert [schedule(epoch, epochs) for epoch in (1.0, 2.0)] == [0.5, 1.0]
    assert schedule(2.5, epochs) == 0.0


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (lambda: StepDecay(every_epochs=0, factor=0.5), "every_epochs=0"),
        (lambda: StepDecay(every_epochs=1, factor=-0.5), "factor=-0.5"),
        (lambda: Cosine(final=-1.0), "final=-1.0"),
        (lambda: WarmUp(epochs=0), "epochs=0"),
    ],
)
def test_settings_outside_their_range_are_refused(build, setting):
    with pytest.raises(SettingError, match=setting):
        build()


def test_a_schedule_is_asked_up_to_the_end_of_the_run():
    """Beyond it, ``(1 - e/n) ** 0.9`` would be complex."""
    rate_at = LearningRate(0.1, lambda epoch, epochs: (1 - epoch / epochs) ** 0.9, 100, 5)
    assert [rate_at(progress) for progress in (0, 500, 501, 575)] == [0.1, 0, 0, 0]
    rate_at.require_rates()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, (-1) ** 0.5, None, "0.1"])
def test_a_rate_that_is_no_rate_is_refused_with_its_epoch(wrong):
    rate_at = LearningRate(0.1, lambda epoch, _: 1.0 if epoch < 2.5 else wrong, 100, 5)
    assert rate_at(249) == 0.1
    for refused in (lambda: rate_at(250), rate_at.require_rates):
        with pytest.raises(SettingError, match=naming("schedule(2.5, 5)", repr(wrong))):
            refused()


def test_a_rate_is_a_plain_number():
    rate = LearningRate(0.1, lambda *_: np.float32(0.5), 100, 5)(0)
    assert (type(rate), rate) == (float, 0.05)
