"""A fake of the gateway for tests of what stands in front of it: no pool, no worker, no network."""

from __future__ import annotations

import asyncio
from asyncio import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from described import described
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from dist_net.serving.pool.statistics import NO_VERSION, Histogram, ModelStatistics

DIGITS = described("digits", 3)
ANIMALS = described(
    "animals",
    7,
    input_datatype="UINT8",
    input_shape=(2, 2, 3),
    labels=("cat", "dog", "hen"),
    takes_images=True,
)
ROLLOUT = {
    **{"version": 4, "former": 3, "share": 0.05, "outcome": ""},
    "versions": {
        "3": {"answers": 19.0, "errors": 0.0, "seconds": 1.9, "unknown": 2.0},
        "4": {"answers": 1.0, "errors": 1.0, "seconds": 0.0, "unknown": 0.0},
    },
}
BAD_IMAGE = b"\xff\xd8\xffbad"


def probabilities(request: InferenceRequest) -> np.ndarray:
    """What the fake answers, (rows, 3): as arbitrary as it is repeatable."""
    content = np.frombuffer(request.payload, np.uint8).astype(np.float32)
    rows = content[: len(content) // request.rows * request.rows].reshape(request.rows, -1)
    scores = np.stack([rows.sum(1) % 97, rows.max(1), np.ones(request.rows)], 1) + 1
    return (scores / scores.sum(1, keepdims=True)).astype("<f4")


def served(description: ModelDescription, *older: int) -> ServedModel:
    """A model that is ready, with these older versions beside its newest."""
    numbers = (*older, description.version)
    versions = {number: replace(description, version=number) for number in numbers}
    return ServedModel(description.name, description, versions, True, "")


@dataclass
class FakeService:
    """Answers at once, unless ``scripted`` holds outcomes, or ``is_silent``.

    Remembers ``requests``, the futures that it gave, and what was done with models.
    """

    served: dict[str, ServedModel] = field(
        default_factory=lambda: {"digits": served(DIGITS, 2), "animals": served(ANIMALS)}
    )
    scripted: list[Result] = field(default_factory=list)
    is_silent: bool = False
    is_ready: bool = True
    max_batch_size: int = 8
    drift: list[Any] = field(default_factory=list)
    requests: list[InferenceRequest] = field(default_factory=list)
    futures: list[Future[Result]] = field(default_factory=list)
    done_to_models: list[str] = field(default_factory=list)
    counted: dict[str, dict[int, ModelStatistics]] = field(default_factory=dict)
    unloads: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    lag: Histogram = field(default_factory=Histogram)

    def infer(self, request: InferenceRequest, more_follow: bool = False) -> Future[Result]:
        future: Future[Result] = asyncio.get_running_loop().create_future()
        self.requests.append(request)
        self.futures.append(future)
        if not self.is_silent:
            future.set_result(self.scripted.pop(0) if self.scripted else self._answer(request))
        return future

    def models(self) -> dict[str, ServedModel]:
        return self.served

    def description(self, model: str, version: int | None = None) -> ModelDescription | None:
        served = self.served.get(model)
        if served is None:
            return None
        return served.description if version is None else served.versions.get(version)

    def reload(self, model: str, share: float = 1.0) -> Future[Result]:
        self.done_to_models.append(f"reload {model}" + f" {share}" * (share < 1))
        future: Future[Result] = asyncio.get_running_loop().create_future()
        future.set_result(self.scripted.pop(0) if self.scripted else Result(Status.OK, 8))
        return future

    def end_rollout(self, model: str, outcome: str) -> int:
        self.done_to_models.append(f"{outcome} {model}")
        return NO_VERSION if model == "animals" else 8

    def unload(self, model: str) -> None:
        self.done_to_models.append(f"unload {model}")
        self.unloads[model] = self.unloads.get(model, 0) + 1

    def statistics(self, model: str) -> dict[int, ModelStatistics]:
        return self.counted.get(model, {})

    def status(self) -> dict[str, Any]:
        return {
            "is_ready": self.is_ready,
            "is_draining": False,
            "uptime_s": 12.5,
            "workers": [
                {"name": name, "host": "h", "process_id": 1, "state": state}
                | {"batches": 1, "requests": 2, "heard_s_ago": 0.1}
                for name, state in (("w1", "idle"), ("w2", "busy"))
            ],
            "queue": {"requests": 1, "bytes": 16, "request_limit": 1024, "byte_limit": 2**28},
            "models": [
                {"name": name, "version": 1, "is_ready": each.is_ready, "reason": each.reason}
                | {"takes_images": False, "classes": 3, "requests_per_s": 0.1}
                | {"latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0}, "batch_rows": {1: 5}}
                | {"rollout": ROLLOUT if name == "digits" else None}
                for name, each in self.served.items()
            ],
        }

    def _answer(self, request: InferenceRequest) -> Result:
        described = self.description(request.model, request.version)
        assert described is not None
        version = described.version
        if bytes(request.payload) == BAD_IMAGE:
            return Result(Status.BAD_INPUT, version, reason="this is no image")
        self._count(request, version)
        return Result(
            Status.OK,
            version,
            probabilities(request).tobytes(),
            queue_s=0.001,
            prepare_s=0.002,
            compute_s=0.004,
            batch_rows=request.rows,
            labels=described.labels,
        )

    def _count(self, request: InferenceRequest, version: int) -> None:
        by_version = self.counted.setdefault(request.model, {NO_VERSION: ModelStatistics()})
        statistics = by_version.setdefault(version, ModelStatistics())
        statistics.ran(request.rows, 0.004, 5.0)
        statistics.admitted += 1
        statistics.answered += 1
        for timed in (statistics.success, statistics.queue, statistics.compute_infer):
            timed.observe(0.004)
