"""Sums of columns, whether the rows are taken one by one or several side by side."""

import numpy as np
import pytest

from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations import reduction

SHAPES = [(1, 1), (5, 3), (64, 1), (50176, 16), (4099, 17), (96, 1500)]


def draw(shape, dtype=np.float64):
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def test_many_short_rows_are_seen_as_few_long_ones():
    x = draw((50176, 16), np.float32)
    (rows,) = reduction.long_rows(x)
    assert rows.shape == (784, 1024)
    assert np.shares_memory(rows, x)


@pytest.mark.parametrize("shape", [(4099, 17), (40, 16), (96, 1500)])
def test_rows_are_left_where_nothing_divides_them_or_they_are_few_or_long(shape):
    (rows,) = reduction.long_rows(draw(shape))
    assert rows.shape == shape


def test_rows_are_left_where_one_matrix_is_not_contiguous():
    x = draw((8192, 16))
    assert [each.shape for each in reduction.long_rows(x, x)] == [(128, 1024)] * 2
    transposed = draw((16, 8192)).T
    assert [each.shape for each in reduction.long_rows(x, transposed)] == [x.shape] * 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_of_columns(shape, order):
    x, y = np.asarray(draw(shape), order=order), draw(shape) + 0.5
    out = np.full(shape[1], np.nan)
    sums = [
        (x, lambda pool: reduction.column_sums(x, out, pool)),
        (x * y, lambda pool: reduction.column_dots(x, y, out, pool)),
    ]
    for terms, bound in sums:
        bits = set()
        for threads in (1, 3):
            pool = ThreadPool(threads)
            add = bound(pool)
            for _ in range(2):  # the second call begins anew
                add()
                np.testing.assert_allclose(out, terms.sum(0), rtol=1e-11, atol=1e-11)
                bits.add(out.tobytes())
            pool.close()
        assert len(bits) == 1
