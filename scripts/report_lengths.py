"""Lists the package's modules over 500 lines and functions over 60: worth a look, no error."""

import ast
from pathlib import Path

LONG_MODULE, LONG_FUNCTION = 500, 60
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Prints a line for each, the longest first."""
    found = []
    for path in (ROOT / "dist_net").rglob("*.py"):
        text, name = path.read_text(), str(path.relative_to(ROOT))
        if (lines := text.count("\n")) > LONG_MODULE:
            found.append((lines, name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONG_FUNCTION:
                    found.append((lines, f"{name}:{node.lineno} {node.name}"))
    for lines, what in sorted(found, reverse=True):
        print(f"{lines} lines: {what}")


if __name__ == "__main__":
    main()
