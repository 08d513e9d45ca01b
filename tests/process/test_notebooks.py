"""The notebooks: their code cells run in order, in an empty directory beside the examples."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [each for each in json.loads(notebook.read_text())["cells"] if each["cell_type"] == kind]


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_the_cells_run_in_order(notebook: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(EXAMPLES / "photos")
    directory = tmp_path / "notebooks"
    directory.mkdir()
    code = "\n\n".join("".join(each["source"]) for each in cells(notebook, "code"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_reader_sees_results_and_no_errors(notebook: Path) -> None:
    assert json.loads(notebook.read_text())["nbformat"] == 4
    outputs = [each for cell in cells(notebook, "code") for each in cell["outputs"]]
    assert outputs
    assert all(each["output_type"] in ("stream", "execute_result") for each in outputs)
    assert "/home/" not in notebook.read_text()


def test_there_is_one_for_photos_one_for_failures_and_one_for_replay() -> None:
    assert {*map(name, NOTEBOOKS)} == {
        "photos",
        "kill_a_worker_and_the_server",
        "replay_to_the_same_bits",
    }
