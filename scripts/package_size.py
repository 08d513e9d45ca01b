"""The size of the package: ``scripts/size`` prints it and fails above the line budget.

Also prints the longest modules and functions, the file names that occur twice, and how many
functions and files the walks of docs/architecture.md take.
"""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

MAX_LINES = 56_322
"""The budget. A commit that raises it must state the benefit to users."""

LONG_MODULE, LONG_FUNCTION = 500, 60
PARALLEL_ROLES = {"__init__.py", "__main__.py", "state.py", "loop.py", "settings.py", "codec.py"}
ROOT = Path(__file__).parents[1]


def main() -> int:
    sources = {
        path.relative_to(ROOT): path.read_text() for path in sorted(ROOT.glob("dist_net/**/*.py"))
    }
    lines = sum(text.count("\n") for text in sources.values())
    print(f"{lines:,} lines in {len(sources)} files; budget: {MAX_LINES:,} lines")
    for length, what in long_pieces(sources):
        print(f"{length} lines: {what}")
    for name, paths in duplicate_names(sources).items():
        print(f"{len(paths)} files are called {name}: {', '.join(map(str, paths))}")
    for title, functions, files in walks((ROOT / "docs/architecture.md").read_text()):
        print(f"walk {title!r}: {functions} functions in {files} files")
    if lines > MAX_LINES:
        print(f"{lines - MAX_LINES:,} lines over the budget: remove code, or raise MAX_LINES")
    return int(lines > MAX_LINES)


def long_pieces(sources: dict[Path, str]) -> list[tuple[int, str]]:
    """Return the length and name of long modules and functions, the longest first."""
    found = []
    for path, text in sources.items():
        if (lines := text.count("\n")) > LONG_MODULE:
            found.append((lines, str(path)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONG_FUNCTION:
                    found.append((lines, f"{path}:{node.lineno} {node.name}"))
    return sorted(found, reverse=True)


def duplicate_names(sources: dict[Path, str]) -> dict[str, list[Path]]:
    """Return the paths of the files that share a name, except for parallel roles."""
    by_name = defaultdict(list)
    for path in sources:
        by_name[path.name].append(path.relative_to("dist_net"))
    return {
        name: paths
        for name, paths in by_name.items()
        if len(paths) > 1 and name not in PARALLEL_ROLES
    }


def walks(page: str) -> list[tuple[str, int, int]]:
    """Return the heading of each walk through the code, and its numbers of functions and files."""
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        rows = re.findall(r"^\|[^|]*\| (`[^|]+`[^|]*) \| (`[^|]+) \|$", text, re.MULTILINE)
        steps = [row for row in rows if ".py`" in row[0]]
        if steps:
            files = {name for names, _ in steps for name in re.findall(r"`([^`]+\.py)`", names)}
            functions = sum(len(re.findall(r"`[^`]+`", names)) for _, names in steps)
            found.append((title, functions, len(files)))
    return found


if __name__ == "__main__":
    sys.exit(main())
