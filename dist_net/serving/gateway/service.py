"""What an interface (HTTP, ZeroMQ, the page) may ask the gateway; tests may fake it."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Mapping
from typing import Any, Protocol

from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.requests import Outcome, Question
from dist_net.serving.pool.statistics import ModelStatistics


class Service(Protocol):
    """The gateway as interfaces see it. It belongs to one event loop, and nothing here blocks."""

    def ask(self, question: Question) -> Future[Outcome]:
        """The outcome, later; at once if it is refused. Cancelling the future cancels it."""
        ...

    def models(self) -> Mapping[str, ServedModel]:
        """Every model that is served, by name, in the order of the command line."""
        ...

    def description(self, model: str, version: int | None = None) -> ModelDescription | None:
        """What would answer a request for that version, or for the newest; None if nothing."""
        ...

    def reload(self, model: str) -> Future[Outcome]:
        """Reads a model again from its source; the outcome's ``version`` is the new one."""
        ...

    def unload(self, model: str) -> Outcome:
        """Serves a model no longer; what was admitted is answered."""
        ...

    def statistics(self, model: str) -> Mapping[int, ModelStatistics]:
        """What a model was asked and how it went, by version."""
        ...

    def status(self) -> dict[str, Any]:
        """The pool as it is now, for people: workers, queue, models; see the README."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether every model can be answered for now; False while draining."""
        ...
