"""With --json, stdout holds the object alone, whatever a recipe prints and however it ends."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_net import cli

Start = Callable[..., Any]

RECIPE = """
from dist_net import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential

print("printed by the recipe")
network = Sequential(Rescale(1 / 16), Flatten(), Dense(10))
recipe = Recipe(network, "digits", (8, 8), epochs=2)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "noisy.py").write_text(RECIPE)
    return str(tmp_path / "noisy.py")


def test_every_command_prints_its_object_alone(
    start: Start, here: Callable[..., Any], recipe: str, tmp_path: Path, eventually: Any
) -> None:
    run = str(tmp_path / "run")
    listen = "--listen", "tcp://127.0.0.1:0"
    server = start("parameter-server", recipe, "--run-dir", run, *listen, "--json")
    address = server.says(r"--connect (tcp://\S+)")[1]
    assert start("status", address, "--json").result()["state"] == "waiting"
    joined = start(
        *("join", "--connect", address, "--workers", "1", "--trust-recipe", "--json"),
    )
    assert joined.result() == {"recipe": "noisy", "server": address}
    assert server.result()["run_dir"] == run

    assert here("evaluate", run, "--json")["samples"] == 360
    assert here("replay", run, "--json")["matches"]
    assert here("fetch", "digits", "--json")["classes"] == 10
    costs = "--parameters", "100000", "--step-ms", "1", "--workers", "2"
    assert here("simulate", *costs, "--json")["predictions"]
    rows = tmp_path / "rows.csv"
    rows.write_text(",".join(["1"] * 64))
    assert here("predict", run, rows, "--json")["row"] == f"{rows}:0"

    pool = start("serve", f"model={run}", "--workers", "1", "--http", "127.0.0.1:0")
    address = eventually(lambda: re.search(r"READY http=(\S+)\n", pool.stdout))[1]
    assert start("reload", "model", "--connect", address, "--json").result()["model"] == "model"

    train = start("train", recipe, "--epochs", "100000", "--json")
    train.says("epoch +[1-9]")
    train.process.send_signal(signal.SIGINT)
    assert train.ends() == 130
    assert train.stdout == ""


FAILING = {
    "train": ["none.py"],
    "parameter-server": ["--resume", "auto"],
    "evaluate": ["none"],
    "replay": ["none"],
    "simulate": ["none.py"],
    "predict": ["none", "none.png"],
    "fetch": ["none"],
    "join": ["--connect", "none"],
    "status": ["none"],
    "reload": ["none", "--connect", "none"],
    "labels": ["none"],
}


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.usefixtures("ordinary_process")
def test_a_failing_command_prints_nothing_to_stdout(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.parse([command, "--help"])
    assert ("--json " in capfd.readouterr().out) == (command in FAILING)
    if command in FAILING:
        assert cli.main([command, *FAILING[command], "--json"]) == 2
        assert capfd.readouterr().out == ""
