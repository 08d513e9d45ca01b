"""Tests that match a message by its values fail if one of them is missing."""

import re

import pytest

from naming import naming

MESSAGE = "batch_size=17: expected at most 1,437\nsamples of shape (2, 3); pass --workers"


@pytest.mark.parametrize(
    "values", [(17,), ("--workers", "batch_size=17"), ((2, 3), "1,437"), ("shape", 17)]
)
def test_values_are_found_in_any_order(values: tuple[object, ...]) -> None:
    assert re.search(naming(*values), MESSAGE)


@pytest.mark.parametrize("values", [(7,), (1,), (437,), ("batch",), (17, "--threads"), ((2,),)])
def test_a_value_that_is_missing_or_only_a_part_of_another_is_not(
    values: tuple[object, ...],
) -> None:
    assert not re.search(naming(*values), MESSAGE)
