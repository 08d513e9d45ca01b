"""Numbers of settings: plain Python numbers in range."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.errors import SettingError
from dist_net.optim import Adam, AdamW, LearningRate, Momentum, optimizer_named
from dist_net.optim.ranges import NUMBERS, use_plain_numbers
from dist_net.optim.rule import Optimizer
from naming import naming


@dataclass(frozen=True)
class Everything:
    """A record with a field of every name that has a range."""

    values: Any
    is_on: Any = True
    clip_norm: Any = 0.0
    learning_rate: Any = 0.5
    epochs: Any = 10
    seed: Any = None

    def __post_init__(self) -> None:
        use_plain_numbers(self)


@given(st.integers(1, 2**31 - 1), st.sampled_from([np.int32, np.int64, np.uint64, int]))
def test_integers_of_numpy_become_pythons(number: int, kind: type) -> None:
    record = Everything(kind(number), np.bool_(True), epochs=kind(number), seed=kind(number))
    assert record == Everything(number, True, epochs=number, seed=number)
    assert {type(each) for each in (record.values, record.epochs, record.seed)} == {int}
    assert type(record.is_on) is bool


@given(st.floats(2**-10, 2**10, width=16), st.sampled_from([np.float16, np.float32, np.float64]))
def test_reals_of_numpy_become_pythons(number: float, kind: type) -> None:
    record = Everything(kind(number), clip_norm=kind(number), learning_rate=kind(number))
    assert record == Everything(number, clip_norm=number, learning_rate=number)
    assert {type(each) for each in (record.values, record.clip_norm)} == {float}


def test_none_is_not_set_and_becomes_the_default() -> None:
    record = Everything(None, None, None, None, None, None)
    assert record == Everything(None)
    assert (record.learning_rate, record.epochs, record.seed) == (0.5, 10, None)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["x", -1, float("nan"), float("inf"), 1j, np.ones(1)])
def test_a_number_out_of_range_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=naming(f"{name}=")):
        NUMBERS[name](name, value)


def test_an_integer_beyond_all_floats_is_no_rate() -> None:
    with pytest.raises(SettingError, match="learning_rate=1000"):
        Everything(1, learning_rate=10**400)


@pytest.mark.parametrize(
    ("of_numpy", "plain"),
    [
        (Momentum(np.float64(0.5)), Momentum(0.5)),
        (AdamW(np.float32(0.5), weight_decay=np.float32(0.25)), AdamW(0.5, weight_decay=0.25)),
    ],
)
def test_an_optimizer_with_numpys_numbers_has_the_text_of_the_plain_one(
    of_numpy: Optimizer, plain: Optimizer
) -> None:
    assert str(of_numpy) == str(plain)
    assert optimizer_named(str(of_numpy), Adam()) == plain


def test_an_optimizer_that_is_no_dataclass_is_refused_with_the_remedy() -> None:
    class Own(Optimizer):
        def step(self, *_: Any) -> None: ...

    with pytest.raises(SettingError, match=naming("Own", "@dataclass(frozen=True)")):
        optimizer_named(Own())
    assert isinstance(optimizer_named(dataclass(frozen=True)(Own)()), Own)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, float])
def test_a_schedules_number_of_numpy_is_a_plain_rate(kind: Any) -> None:
    rate = LearningRate(0.5, lambda *_: kind(1), 100, 2)(50)
    assert (rate, type(rate)) == (0.5, float)


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), (-0.1) ** 0.9, None, "1"])
def test_a_schedules_result_that_is_no_rate_is_refused_with_the_epoch(rate: Any) -> None:
    with pytest.raises(SettingError, match=naming("schedule(1.5, 2)")):
        LearningRate(0.1, lambda *_: rate, 100, 2)(150)
