"""Records: several arrays as the fields of one."""

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net.errors import DTypeError, ShapeError
from naming import naming

DTYPE = np.dtype([("code", np.uint8), ("numbers", np.float32, (3,))])


def test_fields_are_read_from_a_record_though_they_lie_scattered_in_it() -> None:
    x = ad.variable("x", (5,), DTYPE)
    assert (x["code"].shape, x["code"].dtype) == ((5,), np.uint8)
    rows = np.zeros(5, DTYPE)
    rows["code"], rows["numbers"] = np.arange(5), np.arange(15).reshape(5, 3)
    code, numbers = ad.evaluate([x["code"], x["numbers"] @ np.eye(3, dtype=np.float32)], x=rows)
    np.testing.assert_array_equal(code, rows["code"])
    np.testing.assert_array_equal(numbers, rows["numbers"])


def test_a_record_contains_its_fields_and_computes_them_when_it_is_an_output() -> None:
    x = ad.variable("x", (2, 3))
    both = ad.record(rows=x + 1, sums=ad.sum(x, 1))
    assert both.shape == (2,)
    (found,) = ad.evaluate([both], x=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found["rows"], np.full((2, 3), 2))
    np.testing.assert_array_equal(found["sums"], [3, 3])


def test_gradients_pass_through_a_record_to_its_fields() -> None:
    x = ad.variable("x", (2, 3))
    both = ad.record(a=ad.square(x), b=x)
    (slope,) = ad.gradients(ad.sum(both["a"] + both["b"]), [x])
    (found,) = ad.evaluate([slope], x=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found, np.full((2, 3), 3))


def test_a_missing_field_and_fields_of_different_lengths_are_refused() -> None:
    x = ad.variable("x", (5,), DTYPE)
    for wrong in (x, ad.record(code=x["code"], numbers=x["numbers"])):
        with pytest.raises(DTypeError, match=naming("'kode'", "code", "numbers")):
            wrong["kode"]
    with pytest.raises(DTypeError, match=naming("'code'", "float32")):
        ad.variable("y", (5,))["code"]
    with pytest.raises(ShapeError, match=naming((5,), (4,))):
        ad.record(a=x["code"], b=ad.variable("y", (4, 2)))
