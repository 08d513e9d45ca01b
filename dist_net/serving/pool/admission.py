"""Whether a request is admitted; if not, the result that says why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.dispatcher import MODELLING_ERROR, Dispatcher
from dist_net.serving.pool.open_requests import OpenRequests
from dist_net.serving.pool.request_queue import LaneKey, RequestQueue
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from dist_net.serving.pool.settings import PoolSettings
from dist_net.serving.pool.versions import ModelVersions
from dist_net.spelling import suggestion

WORKER_STARTS_S = 1.0
"""About how long it takes to replace a lost worker, or to load a first model."""


class Admission:
    """The checks that a request must pass."""

    def __init__(
        self,
        settings: PoolSettings,
        models: Mapping[str, ModelVersions],
        queues: Mapping[str, RequestQueue],
        requests: OpenRequests,
        dispatcher: Dispatcher,
    ) -> None:
        self.is_draining = False
        self._settings = settings
        self._models = models
        self._queues = queues
        self._requests = requests
        self._dispatcher = dispatcher

    def decide(self, request: InferenceRequest, now: float) -> int | Result:
        """The most rows that its batch may have; or why the request is refused."""
        model = self._models.get(request.model)
        if model is None:
            return no_such_model(request.model, self._models)
        if model.is_unloaded:
            return _not_found(f"{model.name} is not served: {model.reason}")
        if self.is_draining:
            return _unavailable("the service is shutting down and admits nothing more", 0.0)
        if not model.is_ready or model.newest is None:
            return _unavailable(
                f"no worker can answer for {model.name} now: "
                f"{model.reason or 'all are lost, and it is served again when one has joined'}",
                WORKER_STARTS_S,
            )
        description = model.newest.description
        if request.version is not None:
            if not model.may_name(request.version):
                served = ", ".join(map(str, model.served().versions))
                return _not_found(
                    f"{model.name} has no version {request.version}: it is served in version "
                    f"{served}"
                )
            description = model.versions[request.version].description
        wrong = self._wrong(request, description)
        if wrong is not None:
            return Result(Status.BAD_INPUT, description.version, reason=wrong)
        if self._requests.quarantine.holds(model.name, description.version, request.payload):
            return Result(
                Status.FAILED,
                description.version,
                reason="this input has ended two workers: it is not tried again",
            )
        return self._in_time(request, model, now)

    def _wrong(self, request: InferenceRequest, description: ModelDescription) -> str | None:
        payload_bytes = len(request.payload)
        rows, name = request.rows, description.name
        most = self._settings.max_batch_size
        if not 1 <= rows <= most:
            return f"a request has {rows} rows: expected 1 to {most}, which is a batch"
        timeout_s = request.timeout_s
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            return f"the time allowed is {timeout_s} s: expected seconds above 0"
        if request.is_image:
            if not description.takes_images:
                return f"{name} takes no images: send a tensor of {description.input_shape}"
            if rows != 1 or not payload_bytes:
                return f"expected one image in a request: got {rows} in {payload_bytes} bytes"
        elif payload_bytes != rows * description.row_bytes:
            return (
                f"the input has {payload_bytes} bytes: expected {rows * description.row_bytes}, "
                f"which is ({rows}, {', '.join(map(str, description.input_shape))}) of "
                f"{description.input_datatype} for {name}"
            )
        return None

    def _in_time(self, request: InferenceRequest, model: ModelVersions, now: float) -> int | Result:
        """As `decide`; refuse a request without room in its model's queue, or without time."""
        settings = self._settings
        queued, held_bytes = len(self._queues[model.name]), model.pending_bytes
        payload_bytes, max_bytes = len(request.payload), settings.queue_bytes // len(self._models)
        key = LaneKey.from_request(request)
        timeout_s = settings.allowed_s(request.timeout_s)
        batch_rows = self._dispatcher.batch_rows(key, timeout_s)
        until_s = self._dispatcher.seconds_until_answered(key, request.rows, batch_rows, now)
        wait_s, answered_s = until_s or (0.0, 0.0)
        if queued >= settings.queue_requests:
            return _unavailable(f"{queued} requests for {model.name} wait already", wait_s)
        if held_bytes and held_bytes + payload_bytes > max_bytes:
            return _unavailable(
                f"requests for {model.name} without an answer have {held_bytes} bytes already; "
                f"{payload_bytes} more would exceed its limit of {max_bytes}",
                wait_s,
            )
        if answered_s <= timeout_s:
            return batch_rows
        return _unavailable(
            f"the answer would take about {answered_s:.3g} s, and {timeout_s:g} s are allowed",
            # With each second the wait gets a second shorter, and it counts this many times.
            (answered_s - timeout_s) / MODELLING_ERROR,
        )


def no_such_model(name: str, models: Iterable[str]) -> Result:
    """The result of a request for a model that is not served."""
    return _not_found(f"no model is called {name[:80]!r}; {suggestion(name, models)}")


def _not_found(reason: str) -> Result:
    return Result(Status.NOT_FOUND, reason=reason)


def _unavailable(reason: str, retry_after_s: float) -> Result:
    return Result(Status.UNAVAILABLE, reason=reason, retry_after_s=retry_after_s)
