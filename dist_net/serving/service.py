"""What an interface (HTTP, ZeroMQ, the page) may ask the gateway; the gateway is one, tests fake it."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dist_net.serving.description import ModelDescription
from dist_net.serving.requests import Outcome, Question
from dist_net.serving.statistics import ModelStatistics


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served now: its newest version, and all that are still answered for.

    ``description`` is None while no version has been loaded, and once it is unloaded; then
    ``reason`` says why. ``is_ready``: some worker can answer for it now.
    """

    name: str
    description: ModelDescription | None
    versions: tuple[int, ...]
    is_ready: bool
    reason: str


class Service(Protocol):
    """The gateway, as interfaces see it. Of one event loop; nothing here blocks."""

    def ask(self, question: Question) -> Future[Outcome]:
        """The outcome, later; at once where it is refused. Cancelling the future cancels it."""
        ...

    def models(self) -> Mapping[str, ServedModel]:
        """Every model that is served, by name, in the order of the command line."""
        ...

    def reload(self, model: str) -> Future[Outcome]:
        """Reads a model again from its source; ``version`` of the outcome is the new one."""
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
