"""A new version that answers a share of the requests until it is confirmed or withdrawn. No I/O.

Each answer of the new version is compared with those of the former one since the answer before, so
that both had the same load. On average the new one has no excess unless it is worse; see ``Bets``.
"""

from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from math import nan
from typing import Any

import numpy as np

from dist_net.serving.pool.bets import Bets
from dist_net.serving.pool.requests import InferenceRequest, Result, Status

SLOWER = 1.25
"""A version is slower if its latencies exceed this multiple of the former version's."""
MAX_ENDED = 0.01
"""The share of a version's answers that may end the worker; one of a hundred is bad luck."""
COMPARED = 100
"""Answers of the former version that an answer is compared with, at most."""
TESTS = ("errors", "latency", "unknown", "ended workers")


@dataclass(eq=False)
class Rollout:
    """One rollout of version ``number``, which gets a ``share`` of the requests of ``former``.

    ``outcome``: how it ended, empty while it lasts.
    """

    number: int
    former: int
    share: float
    outcome: str = ""
    _bets: Bets = field(default_factory=lambda: Bets(len(TESTS)))
    # Of each answer of the former and of the new version: whether it failed, its latency, whether
    # it was unknown (NaN if it failed), and whether the worker ended.
    _answers: tuple[deque[tuple[float, ...]], ...] = field(
        default_factory=lambda: (deque(maxlen=COMPARED), deque(maxlen=COMPARED))
    )
    _totals: tuple[Any, ...] = field(default_factory=lambda: (np.zeros(5), np.zeros(5)))

    def draws(self, request: InferenceRequest) -> bool:
        """Return whether the new version answers a request: the same for each repeat of its id."""
        name = request.repeat_id or request.request_id
        digest = blake2b(f"{self.number} {name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64

    def add(
        self, request: InferenceRequest, result: Result, latency_s: float, ended_worker: bool
    ) -> None:
        """Observe an answer of the new version to a request that it drew, or of the former one."""
        is_ok = result.status is Status.OK
        unknown = _unknown(request, result) if is_ok else nan
        answer = not is_ok, latency_s if is_ok else nan, unknown, ended_worker
        is_new = request.is_drawn
        self._answers[is_new].append(answer)
        self._totals[is_new][:] += 1, *np.nan_to_num(answer)
        if not all(self._answers):
            return
        former, new = (np.array(each, np.float64).T for each in self._answers)
        new[1] /= SLOWER
        excesses = new[:, :, None] - former[:, None, :]  # (tests, new, former); NaN if one failed
        excesses[1] = np.sign(excesses[1])
        excesses[3] = new[3, :, None] / MAX_ENDED - 1
        self._bets.add(np.nan_to_num(excesses).mean((1, 2)))
        for each in self._answers:
            each.clear()

    @property
    def worse(self) -> str:
        """In what the new version is worse, beyond chance; empty if in nothing."""
        return TESTS[self._bets.sums.mean(1).argmax()] if self._bets.is_alarm else ""

    def report(self) -> dict[str, Any]:
        """Return the state, and for each version its answers, and means of them."""
        versions = {}
        for number, totals in zip((self.former, self.number), self._totals, strict=True):
            answers, errors, seconds, unknown, _ = totals.tolist()
            found = {"answers": answers, "errors": errors, "seconds": seconds, "unknown": unknown}
            versions[str(number)] = found
        state = {"version": self.number, "former": self.former, "share": self.share}
        return state | {"outcome": self.outcome, "versions": versions}


def _unknown(request: InferenceRequest, result: Result) -> float:
    """Return the share of unknown rows in an answer."""
    if not result.unknown_below or not request.rows:
        return 0.0
    rows = np.frombuffer(result.payload, "<f4").reshape(request.rows, -1, copy=False)
    return float((rows.max(1) < result.unknown_below).mean())
