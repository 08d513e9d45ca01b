"""The scripts in examples/learn print the tables that the pages in docs/learn show."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = [
    ("jacobian_modes.py", ("--rounds", "1", "--largest", "100000"), "reverse_and_forward.md"),
    ("winograd_or_im2row.py", ("--rounds", "1"), "winograd.md"),
]


@pytest.mark.parametrize(("script", "options", "page"), MEASURED)
def test_a_page_has_the_tables_that_its_script_prints(
    script: str, options: tuple[str, ...], page: str
) -> None:
    if script.startswith("winograd") and find_spec("numba") is None:
        pytest.skip("the tables of the page have the columns of the extra `fast`")
    command = [sys.executable, ROOT / "examples" / "learn" / script, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    shown = tables((ROOT / "docs" / "learn" / page).read_text())
    printed = tables(done.stdout)
    assert printed
    assert [each for each in printed if each not in shown] == []


def tables(text: str) -> list[tuple[str, ...]]:
    """Return the header of each table, and how many rows it has."""
    found = re.findall(r"^(\|.*\|)\n\|[-:|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    return [(header, str(len(rows.splitlines()))) for header, rows in found]
