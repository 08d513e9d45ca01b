"""``dist-net simulate``: its table, its sentence, its plot, and its errors."""

import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from dist_net.cli import parse
from dist_net.cli.simulate import TYPICAL_COSTS
from dist_net.errors import BadInputError, FileWriteError, MissingExtraError
from dist_net.training.planner.capacity import GOODPUT
from dist_net.training.planner.costs import ClusterCosts
from dist_net.training.run import measuring
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.round_plan import PlannedRun, divided_minibatch
from naming import naming

BY_HAND = ("--step-ms", "3.5", "--parameters", "100000", "--network", "1gbit:0.1ms")


def simulate(*words: object) -> None:
    arguments = parse(["simulate", *map(str, words)])
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        assert arguments.module.run(arguments) == 0


def test_a_cluster_is_predicted_from_a_few_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    words = "--workers", 16, 1, 1, "--cores", 4, "--consistency", "async", "--local-steps", 1
    simulate(*BY_HAND, *words, "--json")
    result: dict[str, Any] = json.loads(capfd.readouterr().out)
    one, many = result.pop("predictions")
    assert (one["workers"], many["workers"]) == (1, 16)
    assert (one["bottleneck"], many["bottleneck"]) == ("exchange", "network")
    batch_size = divided_minibatch(PlannedRun(Consistency.ASYNC, 10_000, 32), 16).batch_size
    assert many["samples_per_s"] == pytest.approx(batch_size * GOODPUT * 125e6 / 600_004)
    assert (one["staleness"], many["staleness"]) == (0, 15)
    assert {*many} == {
        *("workers", "samples_per_s", "local_steps", "waiting", "staleness", "load", "bottleneck")
    }
    assert {*many["load"]} == {"server", "network"}
    assert (result["saturates"], 1 < result["saturates_at_workers"] < 16) == ("network", True)
    assert (result["parameters"], result["state_vectors"], result["batch_size"]) == (100_000, 3, 32)
    assert (result["step_ms"], result["minibatches"], result["cores"]) == (3.5, 10_000, 4)
    assert (result["network"], result["consistency"]) == ("1gbit:0.1ms", "async")
    assert result["exchange_bytes"][1] == 600_004


def test_the_optimizers_vectors_are_exchanged_too(capfd: pytest.CaptureFixture[str]) -> None:
    simulate(*BY_HAND, "--optimizer", "sgd", "--json")
    result = json.loads(capfd.readouterr().out)
    assert result["exchange_bytes"][1] == 200_004


@pytest.mark.parametrize("consistency", ["rounds", "async", "bsp"])
@pytest.mark.parametrize("network", ["shared-memory", "1gbit:0.1ms", "10mbit:50ms"])
@pytest.mark.parametrize("workers", [1, 3, 64])
def test_the_sentence_agrees_with_the_table(
    consistency: str, network: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "--step-ms", 5, "--parameters", 100_000, "--cores", 2, "--network", network
    simulate(*words, "--consistency", consistency, "--workers", 1, workers)
    *_, last, sentence = capfd.readouterr().out.splitlines()
    bottleneck = last.split()[-1]
    names = {"cores": "CPU", "workers": "the workers' computing"}
    assert names.get(bottleneck, bottleneck) in sentence.split(";")[0]
    if found := re.search(r"saturates at ([\d,]+) worker", sentence):
        is_saturated = bottleneck in ("server", "network", "cores")
        assert is_saturated == (int(found[1].replace(",", "")) <= workers)


def test_numbers_are_printed_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    words = "--network", "1gbit:0.1ms", "--batch-size", 1_000_000, "--workers", 100
    simulate("--step-ms", 1, "--parameters", 1, "--consistency", "async", *words)
    title, headings, row, _ = capfd.readouterr().out.splitlines()
    assert len(row) > 60
    assert re.fullmatch(r"100 +[\d,]{9,} +[\d,]+ +\d+% +99 +server [\d,]+% +\w+", row)
    assert headings.index("staleness") == row.index(" 99 ") + 1
    assert "minibatches of 1,000,000 in 1 ms" in title


def test_the_step_of_a_recipe_is_timed_on_this_host(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "STEP_SECONDS", 0.0)
    simulate("digits", "--batch-size", 64, "--workers", 1, "--json")
    result = json.loads(capfd.readouterr().out)
    assert (result["parameters"], result["batch_size"]) == (2410, 64)
    assert result["minibatches"] == 23 * result["epochs"]
    assert result["step_ms"] > 0
    assert result["tcp"] == json.loads(TYPICAL_COSTS.read_text())["tcp"]


def test_saved_costs_are_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    costs = tmp_path / "costs.json"
    state = json.loads(TYPICAL_COSTS.read_text()) | {"step_ms": 50, "batch_size": 7, "threads": 3}
    costs.write_text(json.dumps(state))
    simulate("--costs", costs, "--workers", 1, "--cores", 4, "--json")
    result = json.loads(capfd.readouterr().out)
    assert (result["step_ms"], result["batch_size"], result["threads"]) == (50, 7, 3)
    assert result["predictions"][0]["samples_per_s"] == pytest.approx(7 / 0.05, rel=0.05)


def test_measured_costs_are_fitted_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def measured(shares_memory: bool, parameters: int, vectors: int) -> list[float]:
        server_s = 1e-4 + (1e-9 if shares_memory else 2e-9) * parameters * (1 + vectors)
        return [server_s, 3 * server_s]

    monkeypatch.setattr(measuring, "measure_exchange", measured)
    monkeypatch.setattr(measuring, "STEP_SECONDS", 0.0)
    costs = tmp_path / "costs.json"
    simulate("digits", "--save-costs", costs, "--workers", 1, "--json")
    printed = capfd.readouterr().out
    kept = ClusterCosts.from_json(costs.read_text())
    assert (kept.parameters, kept.batch_size, kept.threads) == (2410, 32, 1)
    assert (kept.shared_memory.server_ns, kept.tcp.server_ns) == pytest.approx((1, 2))
    assert (kept.tcp.server_us, kept.tcp.round_trip_us) == pytest.approx((100, 300), rel=1e-3)
    assert kept.tcp.round_trip_ns == pytest.approx(6)
    simulate("--costs", costs, "--workers", 1, "--json")
    assert capfd.readouterr().out == printed
    with pytest.raises(FileWriteError, match="nowhere"):
        simulate("digits", "--save-costs", tmp_path / "nowhere" / "costs.json")


def test_the_prediction_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "capacity.svg"
    simulate(*BY_HAND, "--workers", 1, 2, "--plot", image)
    assert "<svg" in image.read_text()
    with pytest.raises(FileWriteError, match="nowhere"):
        simulate(*BY_HAND, "--plot", tmp_path / "nowhere" / "capacity.svg")


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
        (["--consistency", "some"], ["--consistency", "'some'", "async"]),
        (["digits", "--costs", "costs.json"], ["--costs", "RECIPE"]),
    ],
)
def test_unreadable_options_are_refused(
    words: list[str], values: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate(*BY_HAND, *words)
    assert ended.value.code == 2
    assert re.match(naming(*values), capfd.readouterr().err)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], ["RECIPE", "--step-ms", "--parameters", "--costs"]),
        (["--step-ms", "1"], ["RECIPE", "--step-ms", "--parameters"]),
        (["--measure"], ["RECIPE", "--measure"]),
        ([*BY_HAND, "--save-costs", "costs.json"], ["RECIPE", "--save-costs"]),
        (["--costs", "nowhere/costs.json"], ["nowhere/costs.json"]),
        (["digits", "--batch-size", "100000"], ["batch_size=100000"]),
        (["digits", "--threads", "99999"], ["threads=99999"]),
        ([*BY_HAND, "--optimizer", "adm"], ["'adm'", "adam"]),
        (["fashion-mnits"], ["'fashion-mnits'"]),
        ([*BY_HAND, "--network", "fast"], ["network='fast'", "shared-memory"]),
        ([*BY_HAND, "--plot", "capacity.gif"], ["capacity.gif", ".png", ".svg"]),
        ([*BY_HAND, "--workers", "100000"], ["workers=100000", "1,000"]),
        ([*BY_HAND, "--consistency", "bsp", "--local-steps", "2"], ["local_steps=2", 1]),
        ([*BY_HAND, "--minibatches", "9" * 400], ["minibatches"]),
    ],
)
def test_impossible_predictions_are_refused(words: list[str], values: list[object]) -> None:
    with pytest.raises(BadInputError, match=naming(*values)):
        simulate(*words)


def test_a_file_without_costs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(b"\xff")
    with pytest.raises(BadInputError, match="0xff"):
        simulate("--costs", path)
    with pytest.raises(BadInputError, match="/dev/zero"):
        simulate("--costs", "/dev/zero")
    path.write_text("{}")
    with pytest.raises(BadInputError, match=r"costs\.json"):
        simulate("--costs", path)
