"""Reloads that somebody waits for, until workers answer with the new version; or it failed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

from dist_net.serving.description import ServedModel
from dist_net.serving.requests import Outcome, Status
from dist_net.wire.serving_messages import Prepared


class Reloads:
    """Who waits for which version of which model; ``None``: for one that is being prepared.

    ``is_rolled_out(model, version)`` tells whether workers have done with a version what they can.
    """

    def __init__(self, is_rolled_out: Callable[[str, int], bool]) -> None:
        self._is_rolled_out = is_rolled_out
        self._waiting: dict[str, list[tuple[int | None, asyncio.Future[Outcome]]]] = defaultdict(
            list
        )

    @property
    def is_waiting(self) -> bool:
        """Whether ``advance`` may end something."""
        return bool(self._waiting)

    def is_wanted(self, model: str) -> bool:
        """Whether a version of this is still to be prepared."""
        return any(version is None for version, _ in self._waiting.get(model, ()))

    def wait(self, model: str, future: asyncio.Future[Outcome]) -> None:
        """The future's result is to be how the reload that was just asked for ends."""
        self._waiting[model].append((None, future))

    def prepared(self, message: Prepared) -> None:
        """The loader has prepared a version, or could not."""
        waiting = self._waiting.pop(message.model, [])
        for _, future in waiting:
            if message.reason:
                _end(future, Outcome(Status.BAD_INPUT, reason=message.reason))
            else:
                self._waiting[message.model].append((message.version, future))

    def end(self, outcome: Outcome) -> None:
        """Nothing will come of any of them."""
        for waiting in self._waiting.values():
            for _, future in waiting:
                _end(future, outcome)

    def advance(self, models: Mapping[str, ServedModel]) -> None:
        """Ends what workers have done with: they have loaded it, or could not, or are gone."""
        for model in [*self._waiting]:
            served = models[model]
            newest = served.description.version if served.description else None
            kept = []
            for version, future in self._waiting.pop(model):
                if version is None or not self._is_rolled_out(model, version):
                    kept.append((version, future))
                elif version in served.versions:
                    _end(future, Outcome(Status.OK, version=version))
                elif newest is not None and not served.reason:  # a later one took its place
                    _end(future, Outcome(Status.OK, version=newest))
                else:
                    _end(future, Outcome(Status.FAILED, reason=served.reason))
            if kept:
                self._waiting[model] = kept


def _end(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
