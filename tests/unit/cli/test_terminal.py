"""What people are shown appears as it is, whatever is in a name."""

import ast
import io
import json
import re
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from benchmarks.__main__ import show
from dist_net.cli.status import pool_view, run_view
from dist_net.data import dataset_named
from dist_net.nets.recipes.recipe import built_in_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import PrintableConsole, plain_console
from dist_net.training.run.prepared_run import draw
from dist_net.training.run.training_progress import TrainingProgress, time_left

ROOT = Path(__file__).parents[3]
ODD = "[a] [/b] :boot:"


def calls(path: Path) -> set[str]:
    """The names of the functions that a module calls."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}


def test_every_console_is_made_in_one_place() -> None:
    modules = [*(ROOT / "dist_net").rglob("*.py"), *(ROOT / "workers").glob("*.py")]
    named = {"Console", "rich.console.Console", "PrintableConsole"}
    makers = [path.name for path in modules if named & calls(path)]
    assert makers == ["terminal.py"]


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\rb", "\x9b2J", "\u202ereversed"])
def test_a_console_gives_a_terminal_nothing_to_obey(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console = plain_console(stderr=False)
    table = Table(text)
    table.add_row(text)
    for printed in (text, table):
        console.print(printed, style="yellow")
    with TrainingProgress(console) as display:
        display.warned(f"{text}\n\tin two lines")
    printed = capsys.readouterr().out
    assert all(each.isprintable() or each in "\n\t" for each in printed)
    assert printed.count("\\") == 4


def report(**known: Any) -> dict[str, Any]:
    """A report of that, and of as many numbers as are asked for."""
    return defaultdict(lambda: 1, known)


def test_a_run_and_its_workers_have_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    shown = report(
        recipe=f"{ODD}.py",
        state="running",
        workers=[report(name=ODD, host=ODD, blas=ODD, slow_because=[])],
        staleness_histogram=[1],
        checkpoint_error=ODD,
        journal_error=None,
        consistency="async",
        loss_warning=None,
        worker_warning=None,
        kernel_warning=None,
        majority_warning=None,
        copy_warning=None,
        standbys=[report(host=ODD, address=ODD)],
    )
    plain_console(stderr=False).print(run_view(shown))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{ODD}.py  running")
    assert printed.count(ODD) == 8


def test_a_pool_shows_any_reason(capsys: pytest.CaptureFixture[str]) -> None:
    model = report(name="x", is_ready=False, reason=ODD, latency_ms=None)
    pool = report(queue=report(), models=[model], workers=[])
    plain_console(stderr=False).print(pool_view(pool))
    assert ODD in capsys.readouterr().out


def test_a_measurement_has_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    show({ODD: [{ODD: ODD}], "rest": {ODD: 1}}, plain_console(stderr=False))
    assert capsys.readouterr().out.count(ODD) == 4


def test_a_message_of_a_run_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(plain_console(), lambda address: f"join {address}") as display:
        display.started([f"ipc:///{ODD}"])
        display.warned(ODD)
    assert capsys.readouterr().err == f"workers may join: join ipc:///{ODD}\n{ODD}\n"


def progress_line(width: int) -> str:
    """The live line of a run on a terminal of so many columns."""
    file = io.StringIO()
    console = PrintableConsole(
        file=file, force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"}
    )
    shown = report(
        records=[{"loss": 0.1234, "accuracy": 0.9876}],
        samples=738_000,
        samples_total=1_200_000,
        epochs=20,
        samples_per_s=63_210.0,
        worker_count=2,
        consistency="rounds",
        samples_per_update=2048.0,
        waiting_share=0.05,
    )
    with TrainingProgress(console) as display:
        display.progressed(shown)
    lines = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n").split("\n")
    return max((line.rstrip() for line in lines if "12.3/20" in line), key=len)


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (60, ["63,210 samples/s"], ["accuracy", "workers"]),
        (80, ["63,210 samples/s", "accuracy 98.8%"], ["per round"]),
        (100, ["63,210 samples/s", "accuracy", "loss 0.123", "2 workers"], ["per round"]),
        (160, ["2 workers", "2,048 samples per round, workers wait 5% of the time"], []),
    ],
)
def test_the_live_line_of_a_run_fits(width: int, shown: list[str], left_out: list[str]) -> None:
    line = progress_line(width)
    assert len(line) <= width
    assert re.match(r"epoch 12.3/20 ━+.* 0:00:08 ", line)
    assert all(each in line for each in shown)
    assert not any(each in line for each in [*left_out, "…"])


def test_without_a_terminal_progress_and_the_time_left_are_printed_when_nothing_else_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = {"epochs": 20, "consistency": "rounds", "records": [], "waiting_share": 0.05}
    seconds = 0.0
    with TrainingProgress(plain_console(), now=lambda: seconds) as display:
        for seconds in range(400):
            under_way = {"samples": 5 * (seconds // 10), "samples_under_way": seconds % 10 // 2}
            speed = {"samples_total": 2000, "samples_per_s": 0.5}
            display.progressed(report(**counts, **under_way, **speed))
            if 100 < seconds < 120:
                display.warned("another line")
    shown = capsys.readouterr().err
    lines = re.findall(r"^epoch .*", shown, re.MULTILINE)
    assert lines[0].startswith("epoch 0.1/20, 1:06:26 left: ")  # 7 of 2,000, one in two seconds
    assert len(lines) == 23
    assert lines[6].startswith("epoch 0.7/20")  # 15 s after the warnings


def test_the_time_left_is_unknown_before_the_first_result() -> None:
    assert time_left(100, 0.0) == "-:--:--"
    assert time_left(-1, 10.0) == "0:00:00"


def test_the_extra_that_images_need_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    directory = RunDirectory.create(tmp_path / "run", "digits", datetime.now())
    record = {"kind": "test", "samples": 1, "loss": 1.0, "accuracy": 0.5}
    directory.write(directory.metrics, json.dumps(record) + "\n")
    draw(directory, built_in_recipe("digits"), dataset_named("digits"), None, plain_console())
    assert "pip install -e '.[plots]'\n" in capsys.readouterr().err
