"""``dist-net simulate``: what it shows, prints and draws, and what it refuses."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.cli import parse
from dist_net.cli.simulate import TYPICAL_COSTS
from dist_net.errors import BadInputError, MissingExtraError
from dist_net.training.planner.costs import GOODPUT, ClusterCosts, ExchangeCost
from dist_net.training.run.measuring import WARM_UP, MeasuredExchange, RecipeStep
from naming import naming

BY_HAND = ("--step-ms", "3.5", "--parameters", "100000", "--network", "1gbit:0.1ms")


def simulate(*words: object) -> None:
    arguments = parse(["simulate", *map(str, words)])
    assert arguments.module.run(arguments) == 0


def test_a_cluster_is_predicted_from_a_few_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(*BY_HAND, "--workers", 16, 1, 1, "--cores", 4, "--consistency", "async", "--json")
    printed, shown = capsys.readouterr()
    result: dict[str, Any] = json.loads(printed)
    one, many = result.pop("predictions")
    assert (one["workers"], many["workers"]) == (1, 16)
    assert (one["bound_by"], many["bound_by"]) == ("workers", "network")
    assert 0.7 < many["samples_per_s"] / (32 * GOODPUT * 125e6 / 4e5) < 1
    assert many["idle"] > 0.5 > one["idle"]
    assert set(many) == {
        *("workers", "samples_per_s", "staleness_mean", "staleness_max", "idle", "bound_by"),
        "busy",
    }
    assert result.pop("bound_first_at_workers") == pytest.approx(1.1, abs=0.2)
    assert result == {
        "parameters": 100_000,
        "batch_size": 32,
        "step_ms": 3.5,
        "threads": 1,
        "cores": 4,
        "network": "1gbit:0.1ms",
        "consistency": "async",
        "bytes_received_per_sample": 400_000 / 32,
        "bytes_sent_per_sample": 400_000 / 32,
        "bound_first": "network",
    }
    assert "16 workers, the bottleneck is the server's network" in shown
    assert "15 updates old on average, which costs accuracy" in shown


def test_one_server_may_be_enough(capsys: pytest.CaptureFixture[str]) -> None:
    simulate("--step-ms", 100, "--parameters", 1000, "--network", "1gbit:0.1ms", "--workers", 4)
    printed, shown = capsys.readouterr()
    assert "one server is enough for 4 workers" in shown
    assert "accuracy" not in shown
    assert not printed


def test_the_step_of_a_recipe_is_timed_here(capsys: pytest.CaptureFixture[str]) -> None:
    simulate("digits", "--batch-size", 64, "--workers", 1, "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["parameters"], result["batch_size"]) == (2410, 64)
    assert result["step_ms"] > 0


def test_costs_that_were_measured_elsewhere_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = tmp_path / "costs.json"
    state = json.loads(TYPICAL_COSTS.read_text()) | {"step_ms": 50, "batch_size": 7, "threads": 3}
    costs.write_text(json.dumps(state))
    simulate("--costs", costs, "--workers", 1, "--cores", 4, "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["step_ms"], result["batch_size"], result["threads"]) == (50, 7, 3)
    assert result["predictions"][0]["samples_per_s"] == pytest.approx(7 / 0.05, rel=0.05)


def test_costs_that_are_measured_here_are_shown_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(
        transport: str,
        parameters: int,
        gradients: int,
        optimizer: str,
        directory: Path,
        computes: RecipeStep | None = None,
    ) -> MeasuredExchange:
        if computes is not None:
            for _ in range(WARM_UP + 1):
                computes.run(np.zeros(parameters, np.float32), np.empty(parameters, np.float32))
        assert optimizer == "adam"
        assert not list(directory.glob("*.json"))
        server_s = 1e-4 + gradients * parameters * (1e-9 if transport == "tcp" else 5e-10)
        return MeasuredExchange(server_s, 1e-5, 2e-5, 1e-5, server_s + 6e-5)

    monkeypatch.setattr("dist_net.training.run.measuring.measure_exchange", measured)
    costs = tmp_path / "costs.json"
    simulate("digits", "--measure", "--save-costs", costs, "--workers", 1, "--json")
    printed, shown = capsys.readouterr()
    rows = re.findall(r"│ +(\w[\w ,]*?) +│ +(\d+) +│ +(\d+) +│\n", shown)
    assert ("server", "101", "102") in rows
    assert ("latency, each way", "10", "10") in rows
    kept = ClusterCosts.from_json(costs.read_text())
    assert (kept.parameters, kept.batch_size, kept.threads) == (2410, 32, 1)
    found = dataclasses.astuple(kept.tcp.server)
    assert found == pytest.approx(dataclasses.astuple(ExchangeCost(100, 0.001, 0, 1)), abs=1e-3)
    assert kept.tcp.latency_us == pytest.approx(10)
    simulate("--costs", costs, "--workers", 1, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(printed)


def test_the_prediction_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "capacity.svg"
    simulate(*BY_HAND, "--workers", 1, 2, "--plot", image)
    assert "<svg" in image.read_text()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"\.\[plots\]"):
        simulate(*BY_HAND, "--plot", "capacity.png")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--workers", "0"], ["--workers", 0, 1]),
        (["--workers", "many"], ["--workers", "'many'"]),
        (["--step-ms", "0"], ["--step-ms", 0]),
        (["--step-ms", "inf"], ["--step-ms", "inf"]),
        (["--parameters", "-5"], ["--parameters", -5, 1]),
        (["--network", "fast"], ["--network", "network='fast'", "shared-memory"]),
    ],
)
def test_unreadable_options_are_refused(
    words: list[str], values: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate(*BY_HAND, *words)
    assert ended.value.code == 2
    assert re.match(naming(*values), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "RECIPE.*--step-ms.*--parameters"),
        (["--step-ms", "1"], "RECIPE.*--step-ms.*--parameters"),
        (["--measure"], "--measure .*RECIPE"),
        (["digits", "--save-costs", "costs.json"], "--save-costs .*--measure"),
        (["digits", "--costs", "costs.json"], "--costs .*RECIPE.*--measure"),
        (["--costs", "nowhere/costs.json"], "nowhere/costs.json"),
        (["digits", "--batch-size", "100000"], "batch_size=100000"),
        (["digits", "--threads", "99999"], "threads=99999"),
        ([*BY_HAND, "--consistency", "some"], "consistency='some'.*auto.*async"),
        (["fashion-mnits"], "'fashion-mnits'"),
        ([*BY_HAND, "--plot", "capacity.gif"], r"capacity\.gif.*\.png.*\.svg"),
        ([*BY_HAND, "--workers", "100000"], "workers=100000.*10,000"),
    ],
)
def test_what_cannot_be_predicted_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        simulate(*words)


def test_a_file_that_holds_no_costs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(b"\xff")
    with pytest.raises(BadInputError, match="0xff"):
        simulate("--costs", path)
    with pytest.raises(BadInputError, match="/dev/zero"):
        simulate("--costs", "/dev/zero")
    path.write_text("{}")
    with pytest.raises(BadInputError, match=r"costs\.json"):
        simulate("--costs", path)
