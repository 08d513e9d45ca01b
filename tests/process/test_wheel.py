"""The wheel installs the package ``dist_net`` alone, with its types and its data."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from dist_net.release import VERSION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = tmp_path.iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    outside = {name for name in names if not name.startswith("dist_net/")}
    assert {name.split("/")[0].rpartition(".")[2] for name in outside} == {"dist-info"}
    package = (path for path in (ROOT / "dist_net").rglob("*") if path.is_file())
    expected = {str(path.relative_to(ROOT)) for path in package if "__pycache__" not in path.parts}
    assert names - outside == expected
    assert "dist_net/py.typed" in names
    distribution = PROJECT["name"].replace("-", "_")
    assert {name.split("/")[0] for name in outside} == {f"{distribution}-{VERSION}.dist-info"}


def test_nothing_suggests_the_package_that_has_the_commands_name_on_the_public_index() -> None:
    places = [*ROOT.glob("*.md"), *(ROOT / name for name in ("dist_net", "docs", "examples"))]
    places += [ROOT / "scripts", ROOT / "workers"]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    texts = {file: file.read_text(errors="replace") for file in files if file.suffix != ".pyc"}
    assert len(texts) > 100
    wrong = re.compile(r"install .*(?<!/)\bdist[-_]net *(\[|'|`|$)", re.MULTILINE)
    assert wrong.search("pip install 'dist-net[web]'")
    assert [file for file, text in texts.items() if wrong.search(text)] == []
    assert PROJECT["name"] != "dist-net"
