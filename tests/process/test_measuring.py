"""What a push costs a real server and a real worker."""

from pathlib import Path

import pytest

from dist_net.training.run import measuring


@pytest.mark.parametrize("transport", ["shared memory", "tcp"])
def test_a_push_costs_every_thread_some_time(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "EXCHANGE_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "MIN_EXCHANGES", 20)
    measured = measuring.measure_exchange(transport, 1000, 3, "sgd", tmp_path)
    assert min(measured.server_s, measured.worker_s, measured.round_trip_s) > 0
    # A channel needs no thread of its own.
    transport_s = measured.server_transport_s, measured.worker_transport_s
    assert (max(transport_s) < 1e-4) if transport == "shared memory" else (min(transport_s) > 0)
    assert measured.server_s < 1
