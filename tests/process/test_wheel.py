"""The wheel installs the package ``dist_net`` alone, with its types and its data."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
