"""Drift is found within 200 images, and images as promised raise no alarm, whenever one looks."""

import json
from pathlib import Path

import numpy as np
import pytest

from dist_net.images.labels import Calibration
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos import report_content
from dist_net.photos.photo_statistics import JudgedImages
from dist_net.serving.gateway.drift import AnswerPromise, DriftMonitor
from dist_net.serving.pool.bets import LIMIT, Bets
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from selection import few

KNOWN, UNSEEN = 0.9, 0.55
"""Typical probabilities of images of known classes and of others."""


def answered(generator: np.random.Generator, mean: float, count: int) -> np.ndarray:
    """The largest probabilities of ``count`` images, which vary by folder."""
    return generator.beta(8 * mean, 8 * (1 - mean), count)


def promised(generator: np.random.Generator, images: int) -> AnswerPromise:
    """What a report states that was judged on so few images of the same kind."""
    best = answered(generator, KNOWN, images).clip(0.5, 0.9999).astype(np.float32)
    logits = np.log(np.stack([best, 1 - best], 1))
    judged = JudgedImages((), np.zeros(images, np.int64), logits, np.arange(images), 10)
    found = report_content.promise(judged, Calibration(1.0, 0.8, 0.95))
    return AnswerPromise(**found)


@pytest.mark.parametrize("images", [60, 300, 3000])
@pytest.mark.parametrize("seed", few(range(10), 1))
def test_images_as_promised_raise_no_alarm_and_others_do_within_200(seed: int, images: int) -> None:
    generator = np.random.default_rng(seed)
    bets, promise = Bets(2), promised(generator, images)
    for best in answered(generator, KNOWN, 10_000):
        bets.add(promise.excesses(best < 0.8, 1 - best))
        assert not bets.is_alarm
    found = answered(generator, UNSEEN, 200)
    for best in found:
        bets.add(promise.excesses(best < 0.8, 1 - best))
    assert bets.is_alarm
    for best in answered(generator, KNOWN, 2000):
        bets.add(promise.excesses(best < 0.8, 1 - best))
    assert not bets.is_alarm


def test_the_wealth_of_a_bet_does_not_grow_on_average_while_the_promise_holds() -> None:
    """The sum grows by at most 1 an image on average, so that it reaches LIMIT that seldom."""
    generator, limits = np.random.default_rng(0), AnswerPromise(0.2, 0.1, 0.8)
    sums = []
    for _ in range(400):
        bets = Bets(2)
        for _ in range(50):
            excesses = limits.excesses(generator.random() < 0.2, generator.random() < 0.1)
            bets.add(excesses)
        sums.append(bets.sums.mean())
    assert np.mean(sums) < 50 + 4 * np.std(sums) / 20
    assert LIMIT >= 10_000


def test_a_monitor_begins_again_with_another_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = tmp_path / "report.json"
    monitor, events = DriftMonitor("signs", RunDirectory(tmp_path)), []
    monitor.notify = events.append
    image = InferenceRequest("signs", b"", is_image=True)
    sure, unsure = (
        Result(Status.OK, 1, np.array([p, 1 - p], "<f4").tobytes(), unknown_below=0.8)
        for p in (0.95, 0.51)
    )
    monitor(image, unsure)
    assert monitor.facts() == {}
    report.write_text(json.dumps({"promise": AnswerPromise(0.1, 0.1, 0.8)._asdict()}))
    monitor(image, sure)
    assert (monitor.facts()["unknown"], monitor.is_alarm) == (0, False)
    monitor(InferenceRequest("other", b"", is_image=True), unsure)
    assert monitor.facts()["images"] == 1
    for _ in range(50):
        monitor(image, unsure)
    assert monitor.is_alarm
    assert caplog.text.count("images_changed model=signs") == 1
    assert [(each["event"], each["model"]) for each in events] == [("images_changed", "signs")]
    report.write_text(
        json.dumps({"promise": AnswerPromise(0.9, 0.9, 0.7)._asdict()} | {"again": 1})
    )
    monitor(image, unsure)
    assert (monitor.facts()["images"], monitor.is_alarm) == (1, False)
