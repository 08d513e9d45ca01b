"""A run's report as Prometheus reads it."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dist_net.cli import run_metrics as run_metrics_module
from dist_net.cli.run_metrics import PublishedReport, run_metrics
from dist_net.serving.http.pool_metrics import LateCollector
from dist_net.training.server.protocol import ParameterServer, SendToPeer
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.messages import Join, StatusRequest

SETTINGS = RunSettings("digits", "abc", (("weight", (2,)),), samples=40, epochs=2, batch_size=4)


@pytest.fixture
def report() -> dict[str, Any]:
    """A real server's, of two workers of one name, one of which sent a name full of signs."""
    server = ParameterServer(RunState(SETTINGS, np.zeros(2, np.float32)))
    for number, name in enumerate(["one", "one", 'a "b"\\']):
        server.handle(b"%d" % number, Join(name, number, "abc", 2), 0.0)
    server.on_disk.checkpoint_error = "the disk is full"
    server.run.metrics.checkpoints_failed += 1
    [send] = server.handle(b"o", StatusRequest(0), 1.0)
    assert isinstance(send, SendToPeer)
    told: dict[str, Any] = json.loads(send.message.report)  # type: ignore[union-attr]
    return told | {"staleness_histogram": [4, 0, 8], "staleness_mean": 1.5, "pushes_applied": 12}


def samples_of(report: dict[str, Any]) -> dict[str, list[tuple[dict[str, str], float]]]:
    registry: Any = CollectorRegistry()
    registry.register(LateCollector(lambda: run_metrics(report, 0.0)))
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_before_the_first_report_there_is_nothing_and_no_error() -> None:
    assert [*PublishedReport()._collect()] == []


def test_the_age_of_a_report_is_the_time_since_it_was_published(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(run_metrics_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    published = PublishedReport()
    published.publish(report)
    now_s = 103.0
    [age] = next(published._collect()).samples
    assert age.value == 3


def test_counters_gauges_and_failures_are_there(report: dict[str, Any]) -> None:
    found = samples_of(report)
    for name, value in (
        ("dist_net_server_starts_total", 1),
        ("dist_net_checkpoint_failures_total", 1),
        ("dist_net_samples_wanted", 80),
        ("dist_net_training_workers", 3),
        ("dist_net_journal_lag_seconds", 0),
    ):
        assert found[name] == [({}, value)]
    assert ({"file": "checkpoint"}, 1.0) in found["dist_net_failing"]
    assert ({"file": "journal"}, 0.0) in found["dist_net_failing"]
    assert ({"end": "applied"}, 12.0) in found["dist_net_pushes_total"]
    assert sum(value for _, value in found["dist_net_run_state"]) == 1


def test_staleness_is_a_histogram(report: dict[str, Any]) -> None:
    found = samples_of(report)
    buckets = {labels["le"]: value for labels, value in found["dist_net_staleness_updates_bucket"]}
    assert buckets == {"0": 4, "1": 4, "3": 12, "+Inf": 12}
    assert found["dist_net_staleness_updates_count"] == [({}, 12)]
    assert found["dist_net_staleness_updates_sum"] == [({}, 18)]


def test_names_are_well_formed_and_each_series_comes_once(report: dict[str, Any]) -> None:
    found = samples_of(report)
    assert all(name.startswith("dist_net_") for name in found)
    for samples in found.values():
        counted = Counter(tuple(labels.items()) for labels, _ in samples)
        assert max(counted.values()) == 1
    assert all({*labels} == {"worker", "host"} for labels, _ in found["dist_net_worker_slow"])
    workers = {labels["worker"] for labels, _ in found["dist_net_worker_silence_seconds"]}
    assert workers == {"one", "one (2)", 'a "b"\\'}


def test_workers_of_one_name_on_two_hosts_are_told_apart(report: dict[str, Any]) -> None:
    worker = report["workers"][0]
    report["workers"] = [worker | {"host": host} for host in ("gold", "silver")]
    found = samples_of(report)["dist_net_worker_samples_per_second"]
    assert [labels for labels, _ in found] == [
        {"worker": "one", "host": host} for host in ("gold", "silver")
    ]


def test_the_dashboard_shows_metrics_and_labels_that_there_are(report: dict[str, Any]) -> None:
    found = samples_of(report)
    file = Path(__file__).parents[3] / "examples" / "grafana" / "run.json"
    targets = [
        each for panel in json.loads(file.read_text())["panels"] for each in panel["targets"]
    ]
    assert len(targets) > 10
    for target in targets:
        names = re.findall(r"dist_net_\w+", target["expr"])
        assert names
        assert [name for name in names if name not in found] == []
        labels = {label for name in names for of, _ in found[name] for label in of}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
