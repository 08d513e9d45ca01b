"""Runs of a gradient function by the commands, by a loop of a program, and by other libraries."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net.errors import ModelSourceError, RecipeError, UntrustedRecipeError
from journaled import assert_each_sample_once
from naming import naming

Start = Here = Callable[..., Any]

ROOT = Path(__file__).parents[2]
LINE = ROOT / "tests" / "recipes" / "line.py"
EXAMPLES = ROOT / "examples"
SAMPLES = 640
MOST_CHANGED_LINES = 15


def finished(command: Any) -> Any:
    assert command.process.wait(120) == 0, command.stderr
    return command


def test_a_gradient_function_is_trained_evaluated_and_replayed(
    start: Start, here: Here, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = finished(start("train", LINE, "--run-dir", run, "--json"))
    summary = json.loads(trained.stdout)
    assert (summary["samples"], summary["test_accuracy"]) == (8 * SAMPLES, None)
    assert assert_each_sample_once(run, SAMPLES) == 8
    finished(start("replay", run, "--trust-recipe"))
    evaluated = here("evaluate", run, "--json", "--trust-recipe")
    assert evaluated["test_loss"] == summary["test_loss"] < 1
    refused = start("export", run, tmp_path / "line.onnx", "--trust-recipe")
    assert refused.process.wait(60) == 2
    assert re.search(naming("network"), refused.stderr)
    loaded = dist_net.load(run, trust_recipe=True)
    assert {name: each.shape for name, each in loaded.state_dict().items()} == {
        "slope": (5,),
        "mean": (5,),
    }
    np.testing.assert_allclose(loaded.weights[:5], [1, 2, 3, 4, 5], atol=0.5)
    with pytest.raises(ModelSourceError):
        loaded.predict(np.zeros((1, 5), np.float32))


def test_a_gradient_that_holds_the_interpreters_lock_makes_progress(
    start: Start, here: Here, tmp_path: Path
) -> None:
    """As native code may: no thread of its worker sends heartbeats meanwhile."""
    recipe, run, samples = tmp_path / "holding.py", tmp_path / "run", 4 * 16
    held = LINE.read_text().replace("= 640,", f"= {samples},").replace("epochs=8", "epochs=1")
    held = held.replace("    error = X[rows]", "    LIBC.usleep(1_700_000)\n    error = X[rows]")
    recipe.write_text(f"import ctypes\n\nLIBC = ctypes.PyDLL(None)\n{held}")
    trained = finished(start("train", recipe, "--run-dir", run, "--json"))
    summary = json.loads(trained.stdout)
    assert summary["samples"] == samples
    assert assert_each_sample_once(run, samples) == 1
    assert summary["workers_lost"] <= 2  # each once: then the server knows how long it is silent
    assert "restarting" not in trained.stderr
    here("replay", run, "--trust-recipe")


def test_a_loop_of_a_program_takes_part_and_may_leave(
    start: Start, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe, here_too = tmp_path / "run", tmp_path / "own.py", tmp_path / "here"
    here_too.mkdir()
    for directory in (tmp_path, here_too):
        (directory / "samples.txt").write_text(str(SAMPLES))
    read = 'int(Path(__file__).with_name("samples.txt").read_text()), 5'
    own = LINE.read_text().replace("= 640, 5", f"= {read}")
    recipe.write_text(f"from pathlib import Path\n\n{own}")
    server = start(
        *("train", recipe, "--run-dir", run, "--workers", "0", "--listen", "tcp://127.0.0.1:0")
    )
    token = server.says(r"echo (\w+) \|")[1]
    server.says("--workers 0")  # that it waits for workers
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # of a user who has not trained with it
    with pytest.raises(UntrustedRecipeError):
        next(dist_net.join(token))
    with pytest.raises(RecipeError, match=naming("samples.txt")):
        next(dist_net.join(token, trust_recipe=True))
    line = dist_net.load_recipe(str(LINE)).recipe
    facts: dict[str, Any] = {"trust_recipe": True, "data": here_too}
    for _, lease in zip(range(5), dist_net.join(token, **facts), strict=False):
        lease.push(*line.gradient(lease.weights, lease.rows))
    turns = 0
    for lease in dist_net.join(token, **facts):
        lease.push(*line.gradient(lease.weights, lease.rows))
        turns += 1
    # The loop that left finished at most its first lease, of two minibatches.
    assert 8 * SAMPLES // 16 - 2 <= turns <= 8 * SAMPLES // 16
    finished(server)
    assert assert_each_sample_once(run, SAMPLES) == 8
    here("replay", run, "--trust-recipe")


def changed_lines(folder: Path) -> list[str]:
    plain, distributed = (
        (folder / name).read_text().splitlines() for name in ("plain.py", "distributed.py")
    )
    lines = difflib.unified_diff(plain, distributed, n=0, lineterm="")
    return [line for line in lines if re.match(r"[+-](?![+-]{2})", line)]


@pytest.mark.parametrize("library", ["jax", "pytorch"])
def test_a_script_trains_with_processes_after_a_few_changed_lines(
    library: str, here: Here, tmp_path: Path
) -> None:
    assert 0 < len(changed_lines(EXAMPLES / library)) <= MOST_CHANGED_LINES
    if find_spec({"pytorch": "torch"}.get(library, library)) is None:
        pytest.skip(f"{library} is not installed")
    script = shutil.copy(EXAMPLES / library / "distributed.py", tmp_path)
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy (\d+)", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 90
    (run,) = (tmp_path / "runs").iterdir()
    here("replay", run, "--trust-recipe")


ZEROS, DRAWN = "np.zeros(5, np.float32)", "generator.normal(size=5).astype(np.float32)"
