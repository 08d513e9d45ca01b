"""A release is what the sources compute: prose does not count, and everything else does."""

import ast
import re
from pathlib import Path

import pytest

from dist_net.ground import release as module
from dist_net.ground.release import COMPUTING, VERSION, digest_of, release

ROOT = Path(__file__).parents[3]

SOURCE = '''
"""A module."""

RATE = 0.1  # of learning
"""How fast it learns."""


def step(x: float, name: str = "sgd") -> float:
    """Return the next one."""
    print(
        "a text",
    )
    return x * RATE - 1


class Step:
    """A step."""
'''


def test_the_newest_changes_are_those_of_this_version_and_have_a_date() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version, _, date = headings[headings[0] == "Unreleased"].partition(", ")
    assert version == VERSION
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation


def test_a_heading_of_the_changes_stands_once_in_a_release() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    for release_notes in changes.split("\n## ")[1:]:
        headings = re.findall(r"^### .*$", release_notes, re.MULTILINE)
        assert len(set(headings)) == len(headings)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "release"


def changed(old: str, new: str) -> str:
    assert SOURCE.count(old) == 1
    return SOURCE.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another text, of\n\nseveral lines."""'),
        ('"""A module."""', ""),
        ("# of learning", "# of forgetting"),
        ("  # of learning", ""),
        ('"""How fast it learns."""', '"""How slowly it learns."""'),
        ('"""Return the next one."""', '"""Return the one before."""'),
        ('    """Return the next one."""\n', ""),
        ('"""A step."""', '"""A leap."""'),
        ("\n\n\nclass", "\n\n\n\n\n# a comment\nclass"),
        ('"a text",\n    ', "'a text'"),
    ],
)
def test_prose_and_layout_keep_the_digest(old: str, new: str, kept: Path) -> None:
    digests = {digest_of({"a.py": text.encode()}, kept) for text in (SOURCE, changed(old, new))}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1", "0.2"),
        ("- 1", "- 1.0"),
        ("- 1", "- True"),
        ("- 1", "+ 1"),
        ('"a text"', '"another text"'),
        ('"a text"', 'b"a text"'),
        ('"sgd"', '"adam"'),
        ("x * RATE - 1", "RATE * x - 1"),
        ("x * RATE - 1", "x * (RATE - 1)"),
        ("class Step", "class Leap"),
        ('    """A step."""', "    size = 1"),
        ("return x * RATE - 1", "return None"),
        ("return x * RATE - 1", "return"),
        ("return x * RATE - 1", '"return x * RATE - 1"'),
    ],
)
def test_whatever_is_computed_changes_it(old: str, new: str, kept: Path) -> None:
    digests = {digest_of({"a.py": text.encode()}, kept) for text in (SOURCE, changed(old, new))}
    assert len(digests) == 2


def test_the_place_of_a_source_counts(kept: Path) -> None:
    one, two = b"x = 1", b"x = 2"
    sources = ({"a.py": one, "b.py": two}, {"a.py": two, "b.py": one}, {"a.py": one}, {"c.py": one})
    assert len({digest_of(each, kept) for each in sources}) == len(sources)


def test_sources_are_parsed_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"a.py": SOURCE.encode()}
    digest = digest_of(sources, kept)
    parsed: list[bytes] = []
    parse = ast.parse
    monkeypatch.setattr(module.ast, "parse", lambda text: parsed.append(text) or parse(text))
    assert digest_of(sources, kept) == digest
    assert parsed == []
    other = SOURCE.replace("0.1", "0.2").encode()
    assert digest_of({"a.py": other}, kept) != digest
    assert digest_of(sources, kept) == digest
    assert parsed == [other, sources["a.py"]]


@pytest.mark.parametrize("content", [b"", b"x", b"\xff", b"a b", b"a b c"])
def test_a_damaged_cache_is_not_believed(kept: Path, content: bytes) -> None:
    sources = {"a.py": SOURCE.encode()}
    digest = digest_of(sources, kept)
    kept.write_bytes(content)
    assert digest_of(sources, kept) == digest
    raw = kept.read_text().split()[0]
    kept.write_text(f"{raw} 12")
    assert digest_of(sources, kept) == digest


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "file").touch()
    sources = {"a.py": SOURCE.encode()}
    assert digest_of(sources, tmp_path / "file" / "kept") == digest_of(sources, kept)


def test_every_package_that_computes_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = Path(module.__file__).parents[1]
    assert all((here / room / "__init__.py").exists() for room in COMPUTING)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "ground" / "release.py"))
    found = [release.__wrapped__()]
    for room in COMPUTING:
        (tmp_path / room / "deep").mkdir(parents=True)
        (tmp_path / room / "deep" / "x.py").write_text("x = 1")
        found.append(release.__wrapped__())
    assert len({*found}) == len(found)
    assert all(each.startswith(f"{VERSION}+") for each in found)
