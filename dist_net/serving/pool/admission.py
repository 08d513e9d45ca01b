"""Whether a question is let in; if not, the outcome that says why. Pure; time is passed in."""

from __future__ import annotations

import math

from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.quarantine import Quarantine
from dist_net.serving.pool.request_queue import LaneKey
from dist_net.serving.pool.requests import Outcome, Question, Status
from dist_net.serving.pool.routing import MODELLING_ERROR, Router
from dist_net.serving.pool.settings import PoolSettings
from dist_net.serving.pool.versions import ModelVersions

WORKER_STARTS_S = 1.0
"""About what it takes until a lost worker is replaced, or a first one has loaded a model."""


class Admission:
    """The checks, in the order in which they are made."""

    def __init__(
        self,
        settings: PoolSettings,
        models: dict[str, ModelVersions],
        router: Router,
        quarantine: Quarantine,
    ) -> None:
        self.is_draining = False
        self._settings = settings
        self._models = models
        self._router = router
        self._quarantine = quarantine

    def decide(self, question: Question, queued: int, held_bytes: int, now: float) -> int | Outcome:
        """The most rows that its batch may have; or why the question cannot be let in.

        ``queued`` requests wait already; ``held_bytes`` is what all in the pool have.
        """
        model = self._models.get(question.model)
        if model is None:
            known = ", ".join(self._models)
            return _not_found(f"no model is called {question.model[:80]!r}: there is {known}")
        if model.is_unloaded:
            return _not_found(f"{model.name} is not served: {model.reason}")
        if self.is_draining:
            return _unavailable("the service is ending: it lets nothing more in", 0.0)
        if not model.is_ready or model.newest is None:
            return _unavailable(
                f"no worker can answer for {model.name} now: "
                f"{model.reason or 'all are lost, and it is served again when one has joined'}",
                WORKER_STARTS_S,
            )
        description = model.newest.description
        if question.version is not None:
            if not model.may_name(question.version):
                served = ", ".join(map(str, model.served().versions))
                return _not_found(
                    f"{model.name} has no version {question.version}: it is served in version "
                    f"{served}"
                )
            description = model.versions[question.version].description
        wrong = self._wrong(question, description)
        if wrong is not None:
            return Outcome(Status.BAD_INPUT, description.version, reason=wrong)
        if self._quarantine.holds(model.name, description.version, question.payload):
            return Outcome(
                Status.FAILED,
                description.version,
                reason="this input has ended two workers: it is not tried again",
            )
        return self._in_time(question, queued, held_bytes, now)

    def _wrong(self, question: Question, description: ModelDescription) -> str | None:
        payload_bytes = len(question.payload)
        rows, name = question.rows, description.name
        most = self._settings.max_batch_size
        if not 1 <= rows <= most:
            return f"a request has {rows} rows: expected 1 to {most}, which is a batch"
        timeout_s = question.timeout_s
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            return f"the time allowed is {timeout_s} s: expected seconds above 0"
        if question.is_picture:
            if not description.takes_pictures:
                return f"{name} takes no pictures: send a tensor of {description.input_shape}"
            if rows != 1 or not payload_bytes:
                return f"expected one picture in a request: got {rows} in {payload_bytes} bytes"
        elif payload_bytes != rows * description.row_bytes:
            return (
                f"the input has {payload_bytes} bytes: expected {rows * description.row_bytes}, "
                f"which is ({rows}, {', '.join(map(str, description.input_shape))}) of "
                f"{description.input_datatype} for {name}"
            )
        return None

    def _in_time(
        self, question: Question, queued: int, held_bytes: int, now: float
    ) -> int | Outcome:
        """As `decide`; a refusal for want of room or of time."""
        settings = self._settings
        payload_bytes = len(question.payload)
        key = LaneKey.of(question)
        timeout_s = question.timeout_s or settings.default_timeout_s
        batch_rows = self._router.batch_rows(key, timeout_s)
        until_s = self._router.seconds_until_answered(key, question.rows, batch_rows, now)
        wait_s, answered_s = until_s or (0.0, 0.0)
        if queued >= settings.queue_requests:
            return _unavailable(f"{queued} requests wait already", wait_s)
        if held_bytes + payload_bytes > settings.queue_bytes:
            return _unavailable(
                f"{held_bytes} bytes of requests are here already, and {payload_bytes} more would "
                f"exceed the limit of {settings.queue_bytes}",
                wait_s,
            )
        if answered_s <= timeout_s:
            return batch_rows
        return _unavailable(
            f"the answer would take about {answered_s:.3g} s, and {timeout_s:g} s are allowed",
            # Each second makes the wait a second shorter, and the wait counts so much.
            (answered_s - timeout_s) / MODELLING_ERROR,
        )


def _not_found(reason: str) -> Outcome:
    return Outcome(Status.NOT_FOUND, reason=reason)


def _unavailable(reason: str, retry_after_s: float) -> Outcome:
    return Outcome(Status.UNAVAILABLE, reason=reason, retry_after_s=retry_after_s)
