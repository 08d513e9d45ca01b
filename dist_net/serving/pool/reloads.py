"""Reloads that somebody waits for, until workers answer with the new version; or it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dist_net.serving.pool.description import ServedModel
from dist_net.serving.pool.requests import Outcome, Status
from dist_net.wire.serving_messages import ModelPrepared


@dataclass(slots=True)
class _Reload:
    """Who waits for what the loader read when it was asked for the ``asked``-th time, or later.

    Once that has come it is ``version``, the ``place``-th of its model's versions.
    """

    asked: int
    future: asyncio.Future[Outcome]
    place: int | None = None
    version: int = 0


class Reloads:
    """Every reload that has not ended.

    ``came(model)`` says how many versions of a model have come, ``done(model)`` with how many of
    them, in that order, workers have done what they can.
    """

    def __init__(self, came: Callable[[str], int], done: Callable[[str], int]) -> None:
        self._came = came
        self._done = done
        self._waiting: dict[str, list[_Reload]] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether ``advance`` may end something."""
        return bool(self._waiting)

    def wait(self, model: str, asked: int, future: asyncio.Future[Outcome]) -> None:
        """The future's result is to be how this reload ends, for which the loader was asked."""
        self._waiting.setdefault(model, []).append(_Reload(asked, future))

    def prepared(self, message: ModelPrepared) -> None:
        """The loader has prepared a version, or could not.

        A version that it read before it was asked, or unasked, is not what a reload waits for.
        """
        for reload in self._waiting.get(message.model, ()):
            if reload.place is not None or reload.asked > message.asked:
                continue
            if message.reason:
                _end(reload.future, Outcome(Status.BAD_INPUT, reason=message.reason))
            else:
                reload.place, reload.version = self._came(message.model), message.version

    def end(self, outcome: Outcome) -> None:
        """Nothing will come of any of them."""
        for waiting in self._waiting.values():
            for reload in waiting:
                _end(reload.future, outcome)

    def advance(self, models: Mapping[str, ServedModel]) -> None:
        """Ends what workers have done with: they have loaded it, or could not, or are gone.

        They have, too, with a version in whose place a later one has come meanwhile.
        """
        for model in [*self._waiting]:
            for reload in self._waiting[model]:
                if reload.place is not None and self._done(model) >= reload.place:
                    _end(reload.future, _outcome(reload.version, models[model]))
            self._waiting[model] = [each for each in self._waiting[model] if not each.future.done()]
            if not self._waiting[model]:
                del self._waiting[model]


def _outcome(version: int, served: ServedModel) -> Outcome:
    """How the rollout of a version ended."""
    newest = served.description.version if served.description else None
    if version == newest or version in served.versions:
        return Outcome(Status.OK, version=version)
    if newest is not None and not served.reason:  # a later one took its place
        return Outcome(Status.OK, version=newest)
    return Outcome(Status.FAILED, reason=served.reason)


def _end(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
