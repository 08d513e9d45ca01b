"""Whether the images that arrive are like those on which a model was judged.

A run's report promises two means of new images: the share of unknown ones, and the doubt, 1 minus
the largest probability. Each is tested by bets (Waudby-Smith and Ramdas 2024) whose wealth grows on
average only if the mean is above its promise. The sum of the wealths of bets that begin at each
image (Shin, Ramdas and Rinaldo 2022, arXiv 2203.03532) finds a change whenever it begins: while the
promise holds, it reaches ``LIMIT`` once in ``LIMIT`` images on average, or less often.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.nets.run_directory import RunDirectory
from dist_net.serving.pool.requests import InferenceRequest, Result

logger = logging.getLogger(__name__)

LIMIT = 100_000.0
"""At most one false alarm in as many images, on average."""
MAX_SUM = 10 * LIMIT
"""An alarm ends soon after the images are as before."""
BETS = np.array([0.1, 0.25, 0.5, 0.75])
"""Shares of the wealth that is bet on each image."""
RECENT = 200


class AnswerPromise(NamedTuple):
    """Upper bounds of the share of unknown images and of the mean doubt; the threshold of both."""

    unknown_at_most: float
    doubt_at_most: float
    threshold: float


@dataclass
class Bets:
    """The sums of wealths that bet on a share of unknown images and a doubt above the promise."""

    promise: AnswerPromise
    _sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, len(BETS))))

    def add(self, is_unknown: bool, doubt: float) -> None:
        ratios = np.array([is_unknown, doubt]) / np.maximum(self.promise[:2], 1e-3)
        sums = (self._sums + 1) * (1 + BETS * (ratios[:, None] - 1))
        self._sums = np.minimum(sums, MAX_SUM)

    @property
    def is_alarm(self) -> bool:
        return float(self._sums.mean()) >= LIMIT


class DriftMonitor:
    """Compares the answers of one model with the promise in the report of its run."""

    def __init__(self, name: str, run: RunDirectory) -> None:
        self._name, self._run = name, run
        self._written_ns = 0
        self._bets: Bets | None = None
        self._recent: deque[tuple[bool, float]] = deque(maxlen=RECENT)
        self.is_alarm = False
        self.notify: Callable[[dict[str, Any]], None] = lambda _: None

    def __call__(self, request: InferenceRequest, result: Result) -> None:
        """Observe an answer; see ``Gateway.observers``."""
        if request.model != self._name:
            return
        self._read()
        if self._bets is None:
            return
        best = float(np.nan_to_num(np.frombuffer(result.payload, "<f4").max()))
        # With another threshold than the report's, nothing is promised of unknown images.
        is_unknown = best < result.unknown_below == self._bets.promise.threshold
        self._bets.add(is_unknown, 1 - best)
        self._recent.append((is_unknown, 1 - best))
        if self._bets.is_alarm is not self.is_alarm:
            self.is_alarm = self._bets.is_alarm
            event = "images_changed" if self.is_alarm else "images_as_before"
            facts = self.facts()
            logger.warning("%s %s", event, " ".join(f"{k}={v}" for k, v in facts.items()))
            self.notify({"event": event, **facts})

    def facts(self) -> dict[str, Any]:
        """Return the means of the last images beside their promise; {} before there are any."""
        if self._bets is None or not self._recent:
            return {}
        unknown, doubt = np.mean(np.array(self._recent, np.float64), 0).tolist()
        promise = self._bets.promise
        return {
            "model": self._name,
            "is_alarm": self.is_alarm,
            "images": len(self._recent),
            "unknown": round(unknown, 4),
            "unknown_at_most": round(promise.unknown_at_most, 4),
            "probability": round(1 - doubt, 4),
            "probability_at_least": round(1 - promise.doubt_at_most, 4),
        }

    def _read(self) -> None:
        """Begin again with another report; without a promise in it, nothing is compared."""
        try:
            written_ns = self._run.report.with_suffix(".json").stat().st_mtime_ns
            if written_ns == self._written_ns:
                return
            self._written_ns = written_ns
            told = self._run.read_report()["promise"]
            promise = AnswerPromise(*(float(told[name]) for name in AnswerPromise._fields))
        except (OSError, ValueError, TypeError, KeyError):
            self._bets = None
            return
        self._bets, self.is_alarm = Bets(promise), False
        self._recent.clear()
