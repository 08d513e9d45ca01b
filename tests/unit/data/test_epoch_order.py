"""The order in which an epoch visits the samples."""

import numpy as np
import pytest

from dist_net.data import epoch_order


@pytest.mark.parametrize("samples", [1, 2, 3, 64, 65, 60_000])
def test_every_sample_comes_once(samples):
    order = epoch_order(3, 1, samples)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(samples))


def test_the_order_is_the_same_for_ever():
    assert epoch_order(1, 2, 10).tolist() == [5, 6, 9, 3, 2, 1, 0, 8, 4, 7]


def test_no_samples_are_no_order():
    assert epoch_order(1, 2, 0).tolist() == []


def test_seed_and_epoch_both_change_it():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_it_is_shuffled_evenly():
    """The mean position of each tenth of the samples is the middle, within five sigma."""
    samples = 60_000
    position = np.argsort(epoch_order(5, 0, samples))
    tenths = position.reshape(10, -1).mean(axis=1)
    sigma = samples / np.sqrt(12 * samples / 10)
    assert np.abs(tenths - samples / 2).max() < 5 * sigma
