"""The record of trusted recipes: what was trained with or confirmed once, by name and content."""

from pathlib import Path

import pytest

from dist_net.nets.recipes.recipe_files import is_trusted, record_path, trust

FILES = {"recipe.py": "a" * 64, "net.py": "b" * 64}


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return record_path()


def test_only_files_of_that_name_and_content_are_trusted(record: Path) -> None:
    assert not is_trusted(FILES)
    for _ in range(2):
        trust(FILES)
    assert is_trusted(FILES)
    assert not is_trusted({"net.py": "b" * 64})
    assert not is_trusted(FILES | {"other.py": "a" * 64})
    assert not is_trusted({"net.py": "a" * 64})
    assert not is_trusted({})
    assert len(record.read_text().splitlines()) == 2


def test_a_name_with_a_line_break_adds_no_line_of_its_own() -> None:
    hidden = '["recipe.py", "' + "c" * 64 + '"]'
    trust({f"x\n{hidden}\n": "a" * 64})
    assert not is_trusted({"recipe.py": "c" * 64})


def test_a_damaged_record_trusts_nothing(record: Path) -> None:
    trust(FILES)
    record.write_bytes(b"\xff" + record.read_bytes())
    assert not is_trusted(FILES)


def test_a_record_that_cannot_be_written_is_a_warning(
    record: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record.mkdir(parents=True)
    trust(FILES)
    assert str(record) in caplog.text
    assert not is_trusted(FILES)
