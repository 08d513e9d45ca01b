"""What scripts/size counts."""

from pathlib import Path

import pytest

import package_size


def test_the_package_keeps_its_budget() -> None:
    assert package_size.main() == 0


def test_a_package_over_its_budget_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(package_size, "MAX_LINES", 10)
    assert package_size.main() == 1
    assert "over the budget" in capsys.readouterr().out


def test_long_pieces_and_names_that_occur_twice_are_found() -> None:
    long = "def f():\n" + "    pass\n" * 60
    sources = {
        Path("dist_net/a/fetch.py"): long,
        Path("dist_net/b/fetch.py"): "\n" * 501,
        Path("dist_net/b/state.py"): "",
        Path("dist_net/a/state.py"): "",
    }
    pieces = [(501, "dist_net/b/fetch.py"), (61, "dist_net/a/fetch.py:1 f")]
    assert package_size.long_pieces(sources) == pieces
    names = {"fetch.py": [Path("a/fetch.py"), Path("b/fetch.py")]}
    assert package_size.duplicate_names(sources) == names


def test_a_walk_is_counted() -> None:
    page = "## One push\n\n| who | file |\n|---|---|\n| a | `x.py`, `y.py` | `A.b`, `c` |\n"
    page += "| | `x.py` | `d` |\n\n## Other\n\n| a | `b` | `c` |\n"
    assert package_size.walks(page) == [("One push", 3, 2)]
