"""``dist-net simulate``: its table, its sentence, its JSON, and its errors."""

import json
import re
import sys
from contextlib import redirect_stdout

import pytest

from dist_net.cli import parse
from dist_net.cli import simulate as command
from dist_net.errors import BadInputError, SettingError
from dist_net.training.run.capacity import Network
from naming import naming

BY_HAND = ("--step-ms", "3.5", "--parameters", "100000", "--network", "1gbit:0.1ms")


def simulate(*words: object) -> None:
    arguments = parse(["simulate", *map(str, words)])
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        assert arguments.module.run(arguments) == 0


def test_a_cluster_is_predicted_from_a_few_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    simulate(*BY_HAND, "--workers", 16, 2, 2, "--cores", 4, "--minibatches", 5000, "--json")
    printed, text = capfd.readouterr()
    result = json.loads(printed)
    predictions = result.pop("predictions")
    assert [each["workers"] for each in predictions] == [1, 2, 16]
    assert {*predictions[0]} == {"workers", "samples_per_s", "local_steps", "waiting", "limit"}
    assert (result["parameters"], result["batch_size"], result["minibatches"]) == (
        100_000,
        32,
        5000,
    )
    assert (result["step_ms"], result["cores"]) == (3.5, 4)
    assert result["network"] == {"bytes_per_s": 125e6, "latency_s": 1e-4}
    assert f"{result['workers_that_pay']} workers can pay" in text
    assert command.REASONS[result["limit"]] in text


def test_the_step_of_a_recipe_is_timed_on_this_host(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "STEP_SECONDS", 0.0)
    simulate("digits", "--batch-size", 64, "--workers", 1, "--json")
    result = json.loads(capfd.readouterr().out)
    assert (result["parameters"], result["batch_size"]) == (2410, 64)
    assert result["minibatches"] % 23 == 0
    assert result["step_ms"] > 0
    assert result["network"] is None


@pytest.mark.parametrize(
    ("text", "bytes_per_s", "latency_s"),
    [
        ("1gbit:0.1ms", 125e6, 1e-4),
        ("2.5gbit:20us", 312.5e6, 2e-5),
        ("64kbit:1s", 8e3, 1.0),
        ("100mbit:0ms", 12.5e6, 0.0),
    ],
)
def test_a_network_is_a_rate_and_a_latency(text: str, bytes_per_s: float, latency_s: float) -> None:
    assert Network.parse(text) == pytest.approx((bytes_per_s, latency_s))


@pytest.mark.parametrize(
    "text",
    ["", "1gbit", "1gb:1ms", "0gbit:1ms", "-1gbit:1ms", "1gbit:1", "nangbit:1ms", "٣gbit:1ms"],
)
def test_no_other_text_is_a_network(text: str) -> None:
    with pytest.raises(SettingError, match=re.escape(f"network={text!r}")):
        Network.parse(text)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--workers", "0"], ["--workers", 0, 1]),
        (["--workers", "many"], ["--workers", "'many'"]),
        (["--step-ms", "0"], ["--step-ms", 0]),
        (["--step-ms", "inf"], ["--step-ms", "inf"]),
        (["--parameters", "-5"], ["--parameters", -5, 1]),
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
        ([], ["RECIPE", "--step-ms", "--parameters"]),
        (["--step-ms", "1"], ["RECIPE", "--step-ms", "--parameters"]),
        (["digits", "--step-ms", "1"], ["RECIPE", "--step-ms"]),
        (["digits", "--minibatches", "5"], ["RECIPE", "--minibatches"]),
        (["digits", "--batch-size", "100000"], ["batch_size=100000"]),
        (["fashion-mnits"], ["'fashion-mnits'"]),
        ([*BY_HAND, "--workers", "100000"], ["workers=100000", "256"]),
        ([*BY_HAND, "--minibatches", "9" * 400], ["samples"]),
    ],
)
def test_impossible_predictions_are_refused(words: list[str], values: list[object]) -> None:
    with pytest.raises(BadInputError, match=naming(*values)):
        simulate(*words)
