"""What costs are given as: text for networks, JSON for what was measured."""

import json
import re
from typing import Any

import pytest

from dist_net.cli.simulate import TYPICAL_COSTS
from dist_net.errors import CostsDamagedError, SettingError
from dist_net.training.planner.costs import ClusterCosts, ExchangeCost, Network
from dist_net.training.run.measuring import exchange_cost
from naming import naming


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("shared-memory", Network()),
        ("1gbit:0.1ms", Network(125e6, 1e-4)),
        ("2.5gbit:20us", Network(312.5e6, 2e-5)),
        ("64kbit:1s", Network(8e3, 1.0)),
        ("100mbit:0ms", Network(12.5e6, 0.0)),
    ],
)
def test_a_network_is_a_rate_and_a_latency(text: str, network: Network) -> None:
    read = Network.parse(text)
    assert (read.bytes_per_s, read.latency_s) == pytest.approx(
        (network.bytes_per_s, network.latency_s)
    )


@pytest.mark.parametrize(
    "text",
    ["", "1gbit", "1gb:1ms", "0gbit:1ms", "-1gbit:1ms", "1gbit:1", "nangbit:1ms", "٣gbit:1ms"],
)
def test_no_other_text_is_a_network(text: str) -> None:
    with pytest.raises(SettingError, match=re.escape(f"network={text!r}")):
        Network.parse(text)


def test_an_exchange_costs_what_was_measured() -> None:
    cost = ExchangeCost(message_us=50, gradient_us=20, weights_ns=0.5, gradient_ns=0.25)
    size = 100_000

    def measured(parameters: int) -> tuple[float, float]:
        one, grouped = (cost.exchange_s(gradients, parameters) for gradients in (1, 3))
        return one, grouped

    assert cost.exchange_s(3, size) == pytest.approx(1e-6 * (50 + 3 * 20 + 50 + 3 * 25))
    found = exchange_cost(measured(0), measured(size), size)
    for name in ("message_us", "gradient_us", "weights_ns", "gradient_ns"):
        assert getattr(found, name) == pytest.approx(getattr(cost, name)), name


def test_noise_does_not_make_a_cost_negative() -> None:
    assert exchange_cost((2e-6, 1e-6), (1e-6, 1e-6), 1000) == ExchangeCost(2, 0, 0, 0)


def test_gradients_that_cost_more_in_groups_cost_what_they_do_there() -> None:
    cost = exchange_cost((0.0, 0.0), (10e-6, 60e-6), 1000)
    assert cost.exchange_s(3, 1000) == pytest.approx(60e-6)


def test_costs_are_read_as_they_were_written() -> None:
    costs = ClusterCosts.from_json(TYPICAL_COSTS.read_text())
    assert ClusterCosts.from_json(costs.to_json()) == costs


@pytest.mark.parametrize(
    "changed",
    [
        {"parameters": 0},
        {"parameters": 1.5},
        {"step_ms": -1},
        {"step_ms": 0},
        {"step_ms": float("nan")},
        {"step_ms": "1"},
        {"step_ms": 10**400},
        {"threads": True},
        {"tcp": None},
        {"tcp": {}},
        {"unknown": 1},
    ],
)
def test_what_are_no_costs_is_refused(changed: dict[str, Any]) -> None:
    state = json.loads(TYPICAL_COSTS.read_text()) | changed
    with pytest.raises(CostsDamagedError, match=naming("--measure", "--save-costs")):
        ClusterCosts.from_json(json.dumps(state))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000])
def test_other_texts_are_no_costs(text: str) -> None:
    with pytest.raises(CostsDamagedError, match=naming("--measure", "--save-costs")):
        ClusterCosts.from_json(text)
