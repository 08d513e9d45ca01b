"""The page of a run: its routes, and the same page as one file without a server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from dist_net.cli.run_http import RunHttpServer
from dist_net.serving.http.page_files import page_routes
from dist_net.serving.http.replies import HttpReply, Json, error_reply
from dist_net.serving.http.settings import HttpSettings
from dist_net.training.run.timeline_files import FollowedDirectory

POLL_S = 0.25
STREAM_S = 60.0
"""A stream ends after this time, and the page requests the next: no viewer holds one forever."""

STREAMS = 32
"""Beyond this number at a time, a stream ends after its first message: the page polls."""

REPORT_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
    ),
    "x-content-type-options": "nosniff",
}


class RunPage:
    """Serve the timeline that ``feed_of`` returns for a run's name, "" for the only one.

    ``list_runs`` lists the runs of a directory, newest first.
    """

    def __init__(
        self,
        feed_of: Callable[[str], FollowedDirectory | None],
        list_runs: Callable[[], Sequence[dict[str, Any]]] | None = None,
    ) -> None:
        self._feed_of = feed_of
        self._list_runs = list_runs
        self._streams = 0
        self.is_stopping: Callable[[], bool] = lambda: False
        self.files = page_routes(index="runs.html" if list_runs else "run.html")
        self.routes = [
            Route("/timeline", self._timeline),
            Route("/runs", self._runs),
            Route("/report", self._report),
            *self.files,
        ]

    async def _runs(self, _: Request) -> Json:
        return Json(await asyncio.to_thread(self._list_runs) if self._list_runs else [])

    async def _report(self, request: Request) -> Response:
        feed = self._feed_of(request.query_params.get("run", ""))
        if feed is None or not feed.report.is_file():
            return error_reply(
                404, "no report; expected a run on a folder of images that has ended"
            )
        return FileResponse(feed.report, headers=REPORT_HEADERS)

    async def _timeline(self, request: Request) -> HttpReply | StreamingResponse:
        name, seen = (request.query_params.get(each, "") for each in ("run", "seen"))
        if self._list_runs and self._feed_of(name) is None:
            return error_reply(404, f"no run {name[:80]!r}; /runs lists them")
        await asyncio.sleep(0)  # a request begins outside of a task, which a stream needs
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        events = self._events(name, seen)
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")

    async def _events(self, name: str, seen: str) -> AsyncIterator[str]:
        """Yield server-sent events: an id, which is what the viewer has seen, and a message."""
        until_s = time.monotonic() + (STREAM_S if self._streams < STREAMS else 0.0)
        self._streams += 1
        try:
            while True:
                is_last = time.monotonic() >= until_s or self.is_stopping()
                if (feed := self._feed_of(name)) is not None:
                    if feed.polled_s + POLL_S / 2 < time.monotonic():  # once for all viewers
                        feed.polled_s = time.monotonic()
                        feed.poll()
                    seen, message = feed.since(seen)
                    if message:
                        yield f"id: {seen}\ndata: {message}\n\n"
                if is_last:
                    return
                await asyncio.sleep(POLL_S)
        finally:
            self._streams -= 1


@contextmanager
def serving_page(page: RunPage, settings: HttpSettings) -> Iterator[str]:
    """Serve a page during the context, and yield its address; raise as ``HttpServer``."""
    open_paths = frozenset(route.path for route in page.files)
    with RunHttpServer(page.routes, settings, open_paths) as server:
        page.is_stopping = lambda: server.is_stopping
        yield f"{server.url}/"
