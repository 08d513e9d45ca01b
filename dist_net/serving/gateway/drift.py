"""Whether the images that arrive are like those on which a model was judged.

A run's report promises two means of new images: the share of unknown ones, and the doubt, 1 minus
the largest probability. Each is tested by ``Bets``.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.nets.run_directory import RunDirectory
from dist_net.serving.pool.bets import Bets
from dist_net.serving.pool.requests import InferenceRequest, Result

logger = logging.getLogger(__name__)

RECENT = 200


class AnswerPromise(NamedTuple):
    """Upper bounds of the share of unknown images and of the mean doubt; the threshold of both."""

    unknown_at_most: float
    doubt_at_most: float
    threshold: float

    def excesses(self, is_unknown: bool, doubt: float) -> NDArray[np.float64]:
        """Return how far an answer exceeds each bound, as a multiple of it."""
        return np.array([is_unknown, doubt]) / np.maximum(self[:2], 1e-3) - 1


class DriftMonitor:
    """Compares the answers of one model with the promise in the report of its run."""

    def __init__(self, name: str, run: RunDirectory) -> None:
        self._name, self._run = name, run
        self._written_ns = 0
        self._promise: AnswerPromise | None = None
        self._bets = Bets(2)
        self._recent: deque[tuple[bool, float]] = deque(maxlen=RECENT)
        self.is_alarm = False
        self.notify: Callable[[dict[str, Any]], None] = lambda _: None

    def __call__(self, request: InferenceRequest, result: Result) -> None:
        """Observe an answer; see ``Gateway.observers``."""
        if request.model != self._name:
            return
        self._read()
        if self._promise is None:
            return
        best = float(np.nan_to_num(np.frombuffer(result.payload, "<f4").max()))
        # With another threshold than the report's, nothing is promised of unknown images.
        is_unknown = best < result.unknown_below == self._promise.threshold
        self._bets.add(self._promise.excesses(is_unknown, 1 - best))
        self._recent.append((is_unknown, 1 - best))
        if self._bets.is_alarm is not self.is_alarm:
            self.is_alarm = self._bets.is_alarm
            event = "images_changed" if self.is_alarm else "images_as_before"
            facts = self.facts()
            logger.warning("%s %s", event, " ".join(f"{k}={v}" for k, v in facts.items()))
            self.notify({"event": event, **facts})

    def facts(self) -> dict[str, Any]:
        """Return the means of the last images beside their promise; {} before there are any."""
        promise = self._promise
        if promise is None or not self._recent:
            return {}
        unknown, doubt = np.mean(np.array(self._recent, np.float64), 0).tolist()
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
            self._promise = AnswerPromise(*(float(told[name]) for name in AnswerPromise._fields))
        except (OSError, ValueError, TypeError, KeyError):
            self._promise = None
            return
        self._bets, self.is_alarm = Bets(2), False
        self._recent.clear()
