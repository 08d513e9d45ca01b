"""Reports of a run: warnings with their remedies. Those of workers: see ``test_state``."""

import pytest

from desk import Desk, a_run
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.metrics import RECORDS_PER_EPOCH
from dist_net.training.server.run_report import epoch_means, loss_warning

ROUNDS, ASYNC, _ = Consistency


def test_a_loss_that_rises_again_is_warned_of_with_a_remedy() -> None:
    losses = [1.0] * 40 + [0.5] * 20 + [0.55] * 20
    found = []
    for consistency in (ROUNDS, ASYNC):
        run = a_run(consistency=consistency)
        for count in (1, 40, 60, 80, 100):
            rising = [*losses, *[0.9] * 20][:count]
            run.metrics.records.clear()
            run.metrics.records.extend(
                {"loss": loss, "epoch": number / RECORDS_PER_EPOCH, "learning_rate": 0.1}
                for number, loss in enumerate(rising, 1)
            )
            found.append(loss_warning(run))
    *quiet, warning = found[:5]
    assert quiet == [None] * 4
    assert warning is not None
    for word in ("0.5", "0.9", "3.0", "learning rate", "fewer workers"):
        assert word in warning
    assert "--consistency rounds" not in warning
    assert found[9] is not None
    assert "--consistency rounds" in found[9]


@pytest.mark.parametrize(
    ("losses", "warns"),
    [
        ((1.0, 1e-5, 1e-3), False),  # near zero
        ((1.0, 0.0003, 0.0015), False),
        ((1.0, -5.95, -5.949), False),
        ((-1.0, -5.0, -5.95), False),
        ((-1.0, -5.95, -4.0), True),
    ],
)
def test_a_loss_rises_on_the_scale_of_a_runs_losses(losses: list[float], warns: bool) -> None:
    run = a_run()
    for epoch, loss in enumerate(losses, 1):
        record = {"loss": loss, "epoch": epoch, "learning_rate": 0.1}
        run.metrics.records.extend([record] * RECORDS_PER_EPOCH)
    assert (loss_warning(run) is not None) == warns


def test_a_loss_may_rise_while_the_learning_rate_rises() -> None:
    run = a_run()
    found = []
    for rate, loss in ((0.01, 0.5), (0.02, 0.9), (0.03, 1.3), (0.02, 1.0), (0.01, 1.6)):
        record = {"loss": loss, "epoch": 1.0, "learning_rate": rate}
        run.metrics.records.extend([record] * RECORDS_PER_EPOCH)
        found.append(loss_warning(run))
    *quiet, warning = found
    assert quiet == [None] * 4
    assert warning is not None
    assert "from 1 " in warning


def test_epoch_means_are_moving_means_over_an_epoch() -> None:
    assert epoch_means([1.0] * (RECORDS_PER_EPOCH - 1)) == []
    means = epoch_means([1.0] * RECORDS_PER_EPOCH + [3.0] * RECORDS_PER_EPOCH)
    assert means[:: RECORDS_PER_EPOCH // 2] == [1.0, 2.0, 3.0]


def test_samples_under_way_are_estimated_by_the_times_of_earlier_leases() -> None:
    desk = Desk(a_run(samples=400, local_steps=8))
    desk.join(b"a")
    desk.join(b"b")
    works = {b"a": desk.pull(b"a", 1), b"b": desk.pull(b"b", 2)}
    desk.now += 1.0
    assert desk.report()["samples_under_way"] == 0  # no lease was measured
    desk.answers(b"a", desk.a_push(works[b"a"], computed_s=0.8))
    assert desk.report()["samples_under_way"] == works[b"a"].steps.samples  # its result waits
    answers = desk.answers(b"b", desk.a_push(works[b"b"], computed_s=0.8))
    assert desk.report()["samples_under_way"] == 0  # all are applied
    leased = sum(each.steps.samples for each in answers.values())
    shares = []
    for _ in range(20):
        shares.append(desk.report()["samples_under_way"] / leased)
        desk.now += 0.1
    assert shares == sorted(shares)
    assert shares[4] == pytest.approx(0.5, abs=0.1)
    assert shares[-1] == 1  # a late result is no more than its lease
