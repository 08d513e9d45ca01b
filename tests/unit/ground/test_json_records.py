"""Records that are read from JSON, and the JSON that is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from dist_net.ground.json_records import record_from_json


class Point(NamedTuple):
    x: float
    name: str = ""


@dataclass(frozen=True)
class Drawing:
    points: tuple[Point, ...]
    kind: Literal["line", "area"] = "line"
    file: Path = Path()
    seed: int | None = None
    pair: tuple[str, int] = ("", 0)
    sizes: Mapping[str, float] = field(default_factory=dict)
    inner: Drawing | None = None
    anything: Any = None


def test_a_record_has_the_types_of_its_fields() -> None:
    read = record_from_json(
        Drawing,
        {
            "points": [[1, "a"], {"x": 0.5}],
            "kind": "area",
            "file": "a.png",
            "pair": ["b", 3],
            "sizes": {"width": 2},
            "inner": {"points": [], "seed": 7},
        },
    )
    inner = Drawing((), seed=7)
    points = Point(1, "a"), Point(0.5)
    assert read == Drawing(points, "area", Path("a.png"), None, ("b", 3), {"width": 2}, inner)


def test_a_field_that_is_made_before_is_not_converted() -> None:
    made = {1, 2}
    assert record_from_json(Drawing, {"points": []}, anything=made).anything is made


@pytest.mark.parametrize(
    "values",
    [
        None,
        [[]],
        {},
        {"points": [], "more": 1},
        {"points": {}},
        {"points": [["1"]]},
        {"points": [[1, "a", 2]]},
        {"points": [[]]},
        {"points": [], "kind": "circle"},
        {"points": [], "seed": True},
        {"points": [], "seed": 1.5},
        {"points": [], "pair": ["b"]},
        {"points": [], "sizes": {"width": "2"}},
        {"points": [], "inner": {"points": 1}},
    ],
)
def test_other_values_are_refused(values: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        record_from_json(Drawing, values)
