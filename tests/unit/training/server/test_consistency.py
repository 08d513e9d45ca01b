"""What a consistency is called, and the mean of a round."""

import numpy as np
import pytest

from dist_net.errors import SettingError
from dist_net.training.server.consistency import ASYNC, AUTO, Consistency, Round
from dist_net.training.server.journal import Applied
from naming import naming


def test_each_is_read_and_written_by_its_name() -> None:
    assert Consistency.parse("async") == ASYNC
    assert Consistency.parse("ssp:0") == Consistency(max_ahead=0)
    assert Consistency.parse("bsp", workers=3) == Consistency.parse("bsp:3")
    assert Consistency.parse("local:64:3") == Consistency(round_leases=3, local_steps=64)
    for text in ("auto", "async", "ssp:4", "bsp:16", "local:64", "local:64:2", "local:auto"):
        assert str(Consistency.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "auto:1", "ssp", "ssp:", "ssp:-1", "ssp:x", "bsp:0", "bsp:4097", "bsp:²", "sync"),
        *("local", "local:0", "local:4:0", "local:4:", "local:4:2:1", "local:4097", "bsp:2:2"),
    ],
)
def test_what_names_none_is_refused_with_what_does(text: str) -> None:
    with pytest.raises(SettingError, match=naming(repr(text), "auto", "async", "ssp:N", "bsp:N")):
        Consistency.parse(text)


def test_rounds_of_an_unknown_number_of_workers_are_refused_with_what_to_give() -> None:
    with pytest.raises(SettingError, match=naming("consistency='bsp'", "bsp:N")):
        Consistency.parse("bsp")


def test_by_default_more_than_four_workers_go_in_step() -> None:
    assert [AUTO.goes_in_step(workers) for workers in (1, 4, 5, 64)] == [False, False, True, True]
    assert Consistency.parse("ssp:4").goes_in_step(2)
    assert not ASYNC.goes_in_step(64)


def test_the_learning_rate_is_bounded_where_staleness_is_large_and_nothing_else_was_asked() -> None:
    assert [AUTO.max_rate_share(workers, 8.0) for workers in (1, 16, 64)] == [1.0, 1.0, 0.25]
    assert AUTO.max_rate_share(16, full_rate_staleness=4.0) == 0.5
    for text in ("async", "ssp:0", "bsp:64"):
        assert Consistency.parse(text).max_rate_share(64, 8.0) == 1.0


def record(epoch: int, start: int, stop: int, parts: int = 1) -> Applied:
    return Applied(0, 7, 1, epoch, start, stop, 0, 0.1, 1, averaged=True, parts=parts)


def test_the_mean_of_a_round_is_over_samples_and_the_same_in_any_order() -> None:
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(3, 7)).astype(np.float32)
    records = [record(0, 4, 8), record(0, 8, 9), record(1, 0, 4)]
    means = []
    collected = Round()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        for index in order:
            collected.add(records[index], gradients[index].copy())
        assert collected.records == records
        means.append(collected.mean().copy())
        collected.clear()
        assert collected.records == []
    np.testing.assert_allclose(means[0], np.average(gradients, 0, [4, 1, 4]), rtol=1e-5)
    assert len({mean.tobytes() for mean in means}) == 1


def test_the_mean_of_differences_is_over_the_parts_of_leases_of_any_length() -> None:
    collected = Round()
    collected.add(record(0, 0, 8), np.ones(3, np.float32))
    collected.add(record(0, 8, 9, parts=3), np.zeros(3, np.float32))
    np.testing.assert_array_equal(collected.mean(of_differences=True), 0.25)
