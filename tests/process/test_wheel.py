"""The wheel installs the package ``dist_net`` alone, with its types and its data, and it trains."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dist_net.ground.release import VERSION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (built,) = directory.iterdir()
    return built


def closure(requirements: Iterable[str]) -> dict[str, Requirement]:
    """The distributions that these need on this machine, with what they need in turn."""
    found: dict[str, Requirement] = {}
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        needed = waiting.pop()
        if needed.name not in found and (needed.marker is None or needed.marker.evaluate()):
            found[needed.name] = needed
            waiting += map(Requirement, distribution(needed.name).requires or ())
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment: the wheel and its declared dependencies, nothing else.

    The dependencies are linked from this environment, so that no network is needed.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in closure(PROJECT["dependencies"]):
        owner = distribution(name)
        tops = {Path(file).parts[0] for file in owner.files or ()} - {"..", "__pycache__"}
        for top in tops:
            (packages / top).symlink_to(Path(str(owner.locate_file(top))))
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    if find_spec("pip"):
        command = [sys.executable, *install, str(wheel)]
    else:
        command = ["uv", "pip", "install", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return environment / "bin"


def run(programs: Path, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    command = [str(programs / "dist-net"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment)


def test_the_wheel_trains_in_an_environment_with_its_dependencies_alone(
    installed: Path, tmp_path: Path
) -> None:
    ended = run(installed, tmp_path, "train", "digits", "--epochs", "20", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["test_accuracy"] > 0.85


def test_outside_a_checkout_a_hint_names_the_published_package(
    installed: Path, tmp_path: Path
) -> None:
    ended = run(installed, tmp_path, "fetch", "efficientnet-lite0")
    assert ended.returncode == 2
    assert f"pip install '{PROJECT['name']}[pretrained]'" in ended.stderr


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
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
