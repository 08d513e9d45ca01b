"""The costs of exchanges between a real server and a real worker."""

import pytest

from dist_net.training.run import measuring


@pytest.mark.parametrize("shares_memory", [True, False])
def test_an_exchange_costs_server_and_worker_some_time(
    shares_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "EXCHANGE_CPU_SECONDS", 0.1)
    server_s, round_trip_s = measuring.measure_exchange(shares_memory, 1000, 2)
    assert 0 < server_s < round_trip_s < 1


def test_larger_states_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "EXCHANGE_CPU_SECONDS", 0.1)
    cost = measuring.measure_transport(False, 300_000, 0)
    assert 0 < cost.server_ns < cost.round_trip_ns < 10_000
