"""Counters and metric records of a run."""

import json
from dataclasses import replace

import pytest

from desk import SETTINGS, Desk, a_run
from dist_net.optim import StepDecay
from dist_net.training.server import metrics as metrics_module
from dist_net.training.server.metrics import RunMetrics
from dist_net.training.server.state import RunState


def test_staleness_is_counted_in_so_many_buckets_at_most() -> None:
    metrics = RunMetrics()
    for staleness in (0, 1, 2, 3, 4, 7, 8, 2**14 - 1, 2**14, 2**40):
        metrics.pushes_accepted(1, 0.0, 0, [staleness], 0.0)
    assert metrics.staleness_buckets == [1, 1, 2, 2, 1, *[0] * 9, 1, 2]


def test_short_epochs_have_few_records() -> None:
    metrics = RunMetrics()
    metrics.lease_granted(0.0)
    for push in range(1, 100_001):  # each of them an epoch
        metrics.pushes_accepted(32, 1.0, 0, [0], 0.006 * push)
        if metrics.record_due(32 * push, 32):
            metrics.record(32 * push, 32, push, 0.1)
    assert metrics.records[-1]["seconds"] > 0.99 * 600
    assert 3000 < metrics.next_record < 6000
    assert [each["version"] for each in metrics.records][:3] == [1, 2, 3]


def test_counters_go_on_from_those_of_another_release() -> None:
    state = RunMetrics(pushes_applied=7).to_json()
    del state["journal_failures"]
    metrics = RunMetrics.from_json(state | {"unknown_counter": 1})
    assert (metrics.pushes_applied, metrics.journal_failures) == (7, 0)


@pytest.mark.parametrize("kernels", [[1], 3, "x"])
def test_kernels_that_are_no_mapping_are_refused(kernels: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        RunMetrics.from_json(RunMetrics().to_json() | {"kernels": kernels})


def test_there_are_twenty_records_an_epoch_and_an_observer_asks_for_the_new_ones() -> None:
    desk = Desk(a_run(samples=4000, local_steps=1))
    desk.join(b"a")
    desk.trained(b"a", 1)
    report = desk.report()
    assert report["next_record"] == 40
    assert [record["samples"] for record in report["records"]] == list(range(200, 8001, 200))
    assert len(desk.report(first_record=38)["records"]) == 2
    assert desk.report(first_record=40)["records"] == []


def test_a_checkpoint_stays_small_however_long_the_run_and_its_records_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_module, "RECORD_SHARE", 0.0)
    settings = replace(SETTINGS, samples=20, batch_size=1, epochs=600, local_steps=1)
    desk = Desk(a_run(samples=20, batch_size=1, epochs=600, local_steps=1))
    desk.join(b"a")
    desk.trained(b"a", 1, samples_at_most=100 * 20)
    sizes = [len(json.dumps(desk.run.checkpoint().counters))]
    desk.trained(b"a", 1)
    sizes.append(len(json.dumps(desk.run.checkpoint().counters)))
    assert sizes[1] < 1.1 * sizes[0]
    assert desk.report()["records"][0]["samples"] == 2001  # 10,000 are in memory
    assert desk.report(first_record=11_990)["next_record"] == 12_000

    resumed = Desk(RunState.resumed(settings, desk.run.checkpoint()))
    report = resumed.report(first_record=11_999)
    assert [record["samples"] for record in report["records"]] == [12_000]
    assert resumed.report()["records"][0]["samples"] == 11_001  # 1,000 are in the checkpoint
    assert resumed.report(first_record=12_000)["records"] == []


def test_a_record_has_the_learning_rate_of_its_samples() -> None:
    desk = Desk(a_run(schedule=StepDecay(every_epochs=1, factor=0.1)))
    desk.join(b"a")
    desk.trained(b"a", 1)
    rates = [record["learning_rate"] for record in desk.report()["records"]]
    assert rates[0] == 0.5
    assert rates[-1] == pytest.approx(0.05)
