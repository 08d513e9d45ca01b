"""Serve routes about a run over HTTP, from a thread of this process."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Self

from starlette.applications import Starlette
from starlette.routing import Route

from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.http.exchange import Guard
from dist_net.serving.http.replies import Refusals
from dist_net.serving.http.server import HttpServer
from dist_net.serving.http.settings import HttpSettings

logger = logging.getLogger(__name__)


class RunHttpServer:
    """Listens from its creation, and responds within the context. Raise as ``HttpServer``.

    With tokens, only the routes at ``open_paths`` are for everybody.
    """

    def __init__(
        self, routes: Sequence[Route], settings: HttpSettings, open_paths: frozenset[str]
    ) -> None:
        ledger = ClientLedger(settings.queue_bytes)
        application = Starlette(routes=routes)
        self._server = HttpServer(Guard(application, settings, open_paths, Refusals(), ledger))
        self._thread = threading.Thread(target=self._serve, name="run-http", daemon=True)
        self.url = self._server.url

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._thread.join()

    @property
    def is_stopping(self) -> bool:
        return self._server.is_stopping

    def _serve(self) -> None:
        try:
            asyncio.run(self._server.serve())
        except Exception:
            logger.exception("run_http_ended")  # the run continues without it
