"""The ASGI application of the pool: every route, and the errors as JSON."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dist_net.clock import Clock, SystemClock
from dist_net.errors import DistNetError
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.classify import Classification
from dist_net.serving.http.exchange import RequestMemory
from dist_net.serving.http.guard import Guard
from dist_net.serving.http.open_inference.infer import InferEndpoint
from dist_net.serving.http.open_inference.models import Models
from dist_net.serving.http.pages import PAGE, openapi_route, page_routes, pool_route, sample_routes
from dist_net.serving.http.pool_metrics import PoolCollector, metrics_route
from dist_net.serving.http.refusals import Refusals
from dist_net.serving.http.replies import Json, error_reply, raised_reply
from dist_net.serving.http.settings import HttpSettings

# No token is needed: probes learn only whether to send requests to this server, and the
# description of the interface is the same for all servers.
_OPEN = ("/v2/health/live", "/v2/health/ready", "/openapi.json")
_NOT_OFFERED = (
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/logging",
)


def application(
    gateway: Gateway,
    settings: HttpSettings,
    clock: Clock | None = None,
    page: Path = PAGE,
    refusals: Refusals | None = None,
) -> ASGIApp:
    """Return the application that passes requests over HTTP to ``gateway``.

    ``clock`` is the pool's, by default the system's. ``page`` is the directory of the page's files.
    ``refusals`` are shown in the metrics; pass those of the HTTP server.
    """
    refusals = refusals or Refusals()
    memory = RequestMemory(settings)
    files = page_routes(page)
    routes = [
        *InferEndpoint(gateway, memory).routes(),
        *Classification(gateway, memory).routes(),
        *Models(gateway, memory, settings.max_batch_size, clock or SystemClock()).routes(),
        *sample_routes(gateway),
        pool_route(gateway),
        metrics_route(PoolCollector(gateway, refusals)),
        openapi_route(),
        *(Route(path, _not_offered, methods=["GET", "POST"]) for path in _NOT_OFFERED),
        *files,
    ]
    starlette = Starlette(
        routes=routes,
        exception_handlers={
            DistNetError: _raised,
            HTTPException: _no_such_path,
            ClientDisconnect: _disconnected,
            Exception: _unexpected,  # Starlette raises it again, and uvicorn logs it
        },
    )
    starlette.router.redirect_slashes = False
    open_paths = frozenset((*_OPEN, *(route.path for route in files)))
    return Guard(starlette, settings, open_paths, refusals)


async def _raised(_: Request, error: Exception) -> Json:
    assert isinstance(error, DistNetError)
    return raised_reply(error)


class _NoResponse(Response):
    async def __call__(self, *_: object) -> None:
        """Send nothing: the client has disconnected."""


async def _disconnected(*_: object) -> Response:
    return _NoResponse()


async def _unexpected(*_: object) -> Json:
    return error_reply(500, "internal error; see the server's log")


async def _no_such_path(request: Request, error: Exception) -> Json:
    """Return the response for an unknown path, or a method that the path does not support."""
    assert isinstance(error, HTTPException)
    reply = error_reply(
        error.status_code,
        f"{error.detail}: {request.method} {_path(request)}; see /openapi.json for all paths",
    )
    allowed = (error.headers or {}).items()
    reply.raw_headers += [(name.lower().encode(), value.encode()) for name, value in allowed]
    return reply


async def _not_offered(request: Request) -> Json:
    """Return the response for parts of the protocol that are not supported."""
    return error_reply(501, f"{_path(request)} is not supported; see /openapi.json for all paths")


def _path(request: Request) -> str:
    """Return the path for a message; ``request.url`` would fail for a query that is not text."""
    path: str = request.scope["path"]
    return repr(path[:80])
