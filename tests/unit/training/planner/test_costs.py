"""How costs are written: networks as text, measurements as JSON."""

import json
import re
from typing import Any

import pytest

from dist_net.cli.simulate import TYPICAL_COSTS
from dist_net.errors import CostsDamagedError, SettingError
from dist_net.training.planner.costs import ClusterCosts, ExchangeCost, Network
from naming import naming


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
    network = Network.parse(text)
    assert (network.bytes_per_s, network.latency_s) == pytest.approx((bytes_per_s, latency_s))
    assert network.text == text


def test_shared_memory_is_no_network() -> None:
    assert Network.parse("shared-memory") == Network()


@pytest.mark.parametrize(
    "text",
    ["", "1gbit", "1gb:1ms", "0gbit:1ms", "-1gbit:1ms", "1gbit:1", "nangbit:1ms", "٣gbit:1ms"],
)
def test_no_other_text_is_a_network(text: str) -> None:
    with pytest.raises(SettingError, match=re.escape(f"network={text!r}")):
        Network.parse(text)


def test_an_exchange_costs_a_fixed_time_and_a_time_per_element() -> None:
    cost = ExchangeCost(server_us=50, server_ns=2, round_trip_us=80, round_trip_ns=5)
    assert cost.server_s(100_000) == pytest.approx(250e-6)
    assert cost.round_trip_s(100_000) == pytest.approx(580e-6)


def test_costs_are_read_as_they_were_written() -> None:
    costs = ClusterCosts.from_json(TYPICAL_COSTS.read_text())
    assert ClusterCosts.from_json(costs.to_json()) == costs


@pytest.mark.parametrize(
    "changed",
    [
        {"parameters": 0},
        {"step_ms": -1},
        {"step_ms": 0},
        {"step_ms": float("nan")},
        {"step_ms": "1"},
        {"step_ms": 10**400},
        {"threads": True},
        {"tcp": None},
        {"tcp": {}},
        {"tcp": {"server_us": -1, "server_ns": 1, "round_trip_us": 1, "round_trip_ns": 1}},
        {"unknown": 1},
    ],
)
def test_other_values_are_refused(changed: dict[str, Any]) -> None:
    state = json.loads(TYPICAL_COSTS.read_text()) | changed
    with pytest.raises(CostsDamagedError, match=naming("--measure", "--save-costs")):
        ClusterCosts.from_json(json.dumps(state))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(CostsDamagedError, match=naming("--measure", "--save-costs")):
        ClusterCosts.from_json(text)
