"""The functions in the code walks of docs/architecture.md exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = re.findall(
    r"^\|[^|]*\| (`.*`) \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.M
)


def names_in(path: Path) -> set[str]:
    """Functions and classes of a module, and methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names


def test_there_are_steps() -> None:
    assert len(STEPS) > 50


@pytest.mark.parametrize(("files", "functions"), sorted(set(STEPS)))
def test_each_step_is_in_its_file(files: str, functions: str) -> None:
    paths = re.findall(r"`([^`]*\.py)`", files + functions)
    found: set[str] = set()
    for path in paths:
        (module,) = [
            each
            for each in (ROOT / "dist_net" / path, ROOT / "dist_net/serving" / path)
            if each.exists()
        ]
        found |= names_in(module)
    assert {name for name in re.findall(r"`([^`]*)`", functions) if name[-3:] != ".py"} <= found
