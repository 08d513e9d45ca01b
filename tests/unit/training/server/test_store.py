"""Updates never touch a snapshot that somebody reads, and never take in what is not finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.errors import CheckpointError, SegmentError
from dist_net.optim import SGD, Momentum
from dist_net.optim.rule import MAX_COMPILED
from dist_net.training.server.store import WeightStore
from dist_net.vector import Vector
from dist_net.wire.messages import PIPELINE
from tests.listed_buffers import ListedBuffers

SIZE = 5


def a_store(capacity: int = 2 + PIPELINE.snapshots) -> tuple[WeightStore, list[Vector]]:
    buffers = [vector(np.nan) for _ in range(capacity)]
    return WeightStore(
        ListedBuffers(buffers), np.zeros(SIZE, np.float32), SGD().start(SIZE)
    ), buffers


def vector(value: float) -> Vector:
    return np.full(SIZE, value, np.float32)


def two_buffers() -> ListedBuffers:
    return ListedBuffers([vector(np.nan), vector(np.nan)])


@settings(deadline=None)  # the first rule imports numba
@given(
    st.lists(
        st.tuples(st.sampled_from(["apply", "pin", "past", "leave"]), st.integers(0, 2)),
        max_size=80,
    )
)
def test_the_last_pinned_snapshots_never_change(events: list[tuple[str, int]]) -> None:
    store, buffers = a_store(capacity=2 + 3 * PIPELINE.snapshots)
    pinned: dict[int, list[tuple[int, int]]] = {}
    for event, reader in events:
        if event == "apply":
            assert store.apply([vector(-1.0)], [1.0])
        elif event == "leave":
            store.dismiss(reader)
            pinned.pop(reader, None)
        elif event == "past":
            if pinned.get(reader):
                store.unpin_before(reader, pinned[reader][-1][1])
                pinned[reader] = pinned[reader][-1:]
        else:
            if reader not in pinned:
                assert store.admit(reader)
                pinned[reader] = []
            pin = store.pin(reader)
            if pin not in pinned[reader]:
                pinned[reader] = [*pinned[reader], pin][-PIPELINE.snapshots :]
        assert (store.weights == store.version).all()
        for snapshot, version in (pin for pins in pinned.values() for pin in pins):
            assert (buffers[snapshot] == version).all()


def test_every_admitted_reader_can_pin_versions_of_its_own() -> None:
    store, _ = a_store(capacity=2 + 4 * PIPELINE.snapshots)
    admitted = [reader for reader in range(6) if store.admit(reader)]
    assert admitted == [0, 1, 2, 3]
    for reader in PIPELINE.snapshots * admitted:
        store.pin(reader)
        assert store.apply([vector(1.0)], [0.1])
    assert store.apply([vector(1.0)], [0.1])
    store.dismiss(0)
    assert store.admit(9)


def test_two_buffers_are_enough_without_readers() -> None:
    store, _ = a_store(capacity=2)
    assert not store.admit(1)
    for _ in range(5):
        assert store.apply([vector(-1.0)], [1.0])
    assert (store.weights == 5).all()


def test_buffers_beyond_need_are_never_touched() -> None:
    store, buffers = a_store(capacity=50)
    store.admit(1)
    for _ in range(100):
        store.pin(1)
        store.apply([vector(1.0)], [0.1])
    assert np.isnan(buffers[PIPELINE.snapshots + 2 :]).all()


def test_buffers_are_mapped_as_readers_come_and_released_as_they_leave() -> None:
    buffers = ListedBuffers([vector(np.nan) for _ in range(50)])
    store = WeightStore(buffers, np.zeros(SIZE, np.float32), SGD().start(SIZE))
    assert buffers.mapped == {0, 1}
    store.admit(1)
    store.admit(2)
    assert buffers.mapped == set(range(2 + 2 * PIPELINE.snapshots))
    for _ in range(5):
        store.pin(1)
        store.apply([vector(1.0)], [0.1])
    pinned = {store.pin(2).snapshot}
    store.dismiss(1)
    # All but the current one, which the other reader pinned, and the one that is written next.
    assert len({*buffers.released}) == len(buffers.mapped) - 2
    assert not pinned & {*buffers.released}
    assert store.apply([vector(1.0)], [0.1])
    assert (buffers.arrays[pinned.pop()] == -0.5).all()


def test_a_reader_for_which_there_is_no_memory_is_not_admitted() -> None:
    class FewBuffers(ListedBuffers):
        def vector(self, index: int) -> Vector:
            if index > 2 + PIPELINE.snapshots:
                raise SegmentError("cannot map")
            return super().vector(index)

    buffers = FewBuffers([vector(np.nan) for _ in range(50)])
    store = WeightStore(buffers, np.zeros(SIZE, np.float32), SGD().start(SIZE))
    assert [store.admit(reader) for reader in (1, 2)] == [True, False]
    for _ in range(20):
        store.pin(1)
        assert store.apply([vector(1.0)], [0.1])


def test_what_a_reader_is_past_is_used_again() -> None:
    store, buffers = a_store(capacity=50)
    store.admit(1)
    for version in range(100):
        store.pin(1)
        store.unpin_before(1, version)
        store.apply([vector(1.0)], [0.1])
    assert np.isnan(buffers[3:]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    store, _ = a_store()
    gradient = vector(1.0)
    gradient[3] = bad
    assert not store.apply([gradient], [0.1])
    assert store.version == 0
    assert (store.weights == 0).all()
    assert store.apply([vector(1.0)], [0.1])


def test_a_gradient_that_is_not_finite_takes_those_before_it_along() -> None:
    store = WeightStore(two_buffers(), vector(0.0), Momentum(0.5).start(SIZE))
    assert not store.apply([vector(1.0), vector(np.nan)], [0.1, 0.1])
    assert store.version == 0
    assert (store.weights == 0).all()
    assert (store.rule.state["velocity"] == 0).all()


def test_what_is_pushed_together_is_updated_in_one_compiled_pass() -> None:
    assert PIPELINE.grouped <= MAX_COMPILED


def test_the_weights_cannot_be_written_from_outside() -> None:
    store, _ = a_store()
    with pytest.raises(ValueError, match="read-only"):
        store.weights[0] = 1.0


def test_an_optimizer_goes_on_from_its_restored_vectors() -> None:
    whole = WeightStore(two_buffers(), vector(0.0), Momentum(0.5).start(SIZE))
    for _ in range(3):
        whole.apply([vector(1.0)], [0.1])
    first = WeightStore(two_buffers(), vector(0.0), Momentum(0.5).start(SIZE))
    first.apply([vector(1.0)], [0.1])
    second = WeightStore(two_buffers(), first.weights.copy(), Momentum(0.5).start(SIZE))
    second.restore(first.version, {n: v.astype(np.float32) for n, v in first.rule.state.items()})
    for _ in range(2):
        second.apply([vector(1.0)], [0.1])
    assert second.version == whole.version == 3
    np.testing.assert_array_equal(second.weights, whole.weights)


def test_an_average_of_the_weights_goes_on_from_what_was_kept() -> None:
    whole, first = (
        WeightStore(two_buffers(), vector(0.0), SGD().start(SIZE), average_decay=0.5)
        for _ in range(2)
    )
    for _ in range(3):
        whole.apply([vector(1.0)], [0.1])
    first.apply([vector(1.0)], [0.1])
    kept = {name: each.copy() for name, each in first.state.items()}
    second = WeightStore(two_buffers(), first.weights.copy(), SGD().start(SIZE), average_decay=0.5)
    second.restore(first.version, kept)
    for _ in range(2):
        second.apply([vector(1.0)], [0.1])
    np.testing.assert_array_equal(second.evaluated_weights, whole.evaluated_weights)
    assert (whole.weights < whole.evaluated_weights).all()


def test_an_average_is_begun_or_left_out_when_a_run_goes_on() -> None:
    begun = WeightStore(two_buffers(), vector(7.0), SGD().start(SIZE), average_decay=0.5)
    begun.restore(9, {})
    np.testing.assert_array_equal(begun.evaluated_weights, vector(7.0))
    without = WeightStore(two_buffers(), vector(7.0), SGD().start(SIZE))
    without.restore(9, {"weight_average": vector(1.0)})
    np.testing.assert_array_equal(without.evaluated_weights, vector(7.0))


@pytest.mark.parametrize("state", [{}, {"velocity": np.zeros(SIZE + 1, np.float32)}])
def test_vectors_of_another_optimizer_are_refused(state: dict[str, Vector]) -> None:
    store = WeightStore(two_buffers(), vector(0.0), Momentum().start(SIZE))
    with pytest.raises(CheckpointError, match="velocity"):
        store.restore(1, state)
