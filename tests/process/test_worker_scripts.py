"""The scripts in ``workers/`` start a role from a checkout, wherever they are called from."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "workers").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_how_its_role_is_started(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(script), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert printed.stdout.startswith(f"usage: {script.name} ")


def test_there_is_a_script_for_each_role_of_several_machines() -> None:
    roles = ["gateway", "inference_worker", "parameter_server", "training_worker"]
    assert [script.stem for script in SCRIPTS] == roles
