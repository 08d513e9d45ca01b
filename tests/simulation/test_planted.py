"""Simulated runs find bugs that patches plant in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = sorted((Path(__file__).parent / "planted").rglob("*.patch"))
OPTIONS = {"pool": ["--pool"], "standby": ["--standbys"]}
SEEDS = 1000
QUICK = {
    "leased_samples_are_not_kept": 20,
    "parts_weigh_as_one": 40,
    "optimizer_of_a_lease_is_kept": 20,
    "pool/cancelled_request_is_answered": 40,
    "standby/list_of_standbys_is_written_in_place": 10,
    "standby/standby_takes_over_beside_a_live_server": 10,
}


def planted(patch: Path, directory: Path, *options: str) -> None:
    """Patch the copy of the package. Raise CalledProcessError if the patch does not apply."""
    command = ["git", "apply", "--whitespace=nowarn", *options, str(patch)]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dist_net", tmp_path / "dist_net", ignore=without)
    return tmp_path


def result_of(directory: Path, seeds: int, patch: Path) -> str:
    """Return the report on the first seed that fails in the patched copy."""
    command = [sys.executable, "-m", "simulation", "0", str(seeds)]
    command += OPTIONS.get(patch.parent.name, [])
    environment = os.environ | {"PYTHONPATH": f"{directory}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    return done.stdout


def test_twenty_bugs_are_planted_and_each_is_in_the_table() -> None:
    table = (ROOT / "docs/simulation.md").read_text()
    assert len(PLANTED) >= 20
    assert [patch.stem for patch in PLANTED if patch.stem.replace("_", " ") not in table] == []


def test_each_of_them_still_fits(copy: Path) -> None:
    for patch in PLANTED:
        planted(patch, copy, "--check")


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found(copy: Path, name: str) -> None:
    patch = Path(__file__).parent / "planted" / f"{name}.patch"
    planted(patch, copy)
    assert re.match(r"seed \d+: \w+: .+", result_of(copy, QUICK[name], patch))


@pytest.mark.slow
@pytest.mark.parametrize("patch", PLANTED, ids=lambda patch: patch.stem)
def test_each_planted_bug_is_found_within_a_thousand_seeds(copy: Path, patch: Path) -> None:
    planted(patch, copy)
    assert re.match(r"seed \d+: \w+: .+", result_of(copy, SEEDS, patch))
