"""An array that is reshaped stays the same memory: a copy would be made once, and then be stale."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dist_net"
# An expression is reshaped, or another library's net.
NO_ARRAYS = {"shaping", "ad", "autodiff", "model"}


def reshapes(source: str) -> Iterator[ast.Call]:
    """The calls of an array's method ``reshape``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            is_other = isinstance(owner, ast.Name) and owner.id in NO_ARRAYS
            if node.func.attr == "reshape" and not is_other:
                yield node


@pytest.mark.parametrize(
    "path",
    [each for each in sorted(PACKAGE.rglob("*.py")) if ".reshape(" in each.read_text()],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_reshape_refuses_to_copy(path: Path) -> None:
    for call in reshapes(path.read_text()):
        keywords = {each.arg: ast.unparse(each.value) for each in call.keywords}
        assert keywords.get("copy") == "False", f"{path}:{call.lineno}: {ast.unparse(call)}"
