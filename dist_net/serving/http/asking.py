"""Looks up models for requests over HTTP, and asks the pool; cancels when the client has gone."""

from __future__ import annotations

import asyncio
from asyncio import Future, Task
from collections.abc import Sequence

from starlette.types import Receive

from dist_net.errors import ModelNotServedError, PoolUnavailableError
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.requests import Question, Result, Status
from dist_net.spelling import suggestion

# Most answers come sooner, and need no task that waits for the client to go.
_WATCHED_AFTER_S = 0.005
_MAX_VERSION = 18


def served_model(gateway: Gateway, name: str) -> ServedModel:
    """The model of this name; raises ModelNotServedError."""
    served = gateway.models().get(name)
    if served is None:
        raise ModelNotServedError(
            f"no model is called {name[:80]!r}; {suggestion(name, gateway.models())}"
        )
    return served


def description_of(gateway: Gateway, name: str, version: int | None = None) -> ModelDescription:
    """The description of a model's newest version, or of ``version``.

    Raises ModelNotServedError if there is none, PoolUnavailableError while nothing is served.
    """
    if version is not None:
        served = served_model(gateway, name)
        require_version(served, version)
        return served.versions[version]
    description = gateway.description(name)
    if description is None:
        served = served_model(gateway, name)
        raise PoolUnavailableError(
            f"no version of {name} is served now: {served.reason or 'it is being loaded'}"
        )
    return description


def require_version(served: ServedModel, version: int) -> None:
    """Raises ModelNotServedError unless the model is served in this version."""
    if version not in served.versions:
        raise ModelNotServedError(
            f"{served.name} has no version {version} now; expected one of "
            f"{', '.join(map(str, served.versions)) or 'none'}"
        )


def version_number(text: str) -> int:
    """The version in a path; raises ModelNotServedError for text that cannot be one."""
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_VERSION):
        raise ModelNotServedError(f"no version {text[:80]!r}; expected a number")
    return int(text)


async def ask(gateway: Gateway, questions: Sequence[Question], receive: Receive) -> list[Result]:
    """The result of each question. The whole body must have been received before.

    The questions are cancelled when the client goes or this task is cancelled.
    """
    futures = [gateway.ask(question) for question in questions]
    watch = _Watch(futures, receive)
    try:
        return [await future for future in futures]
    except asyncio.CancelledError:
        return [Result(Status.CANCELLED, reason="the request was cancelled")] * len(futures)
    finally:
        watch.end()
        for future in futures:
            future.cancel()


class _Watch:
    """Cancels the futures as soon as the client has gone."""

    def __init__(self, futures: Sequence[Future[Result]], receive: Receive) -> None:
        self._futures = futures
        self._receive = receive
        self._task: Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_WATCHED_AFTER_S, self._begin)

    def end(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        for future in self._futures:
            future.cancel()
