"""Which cases of a test run each time."""

from collections.abc import Iterable

import pytest


def few(cases: Iterable[object], count: int = 1) -> list[object]:
    """The cases; all but the first ``count`` are thorough, which means with ``--all`` only."""
    return [each if number < count else thorough(each) for number, each in enumerate(cases)]


def thorough(case: object) -> object:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough)
