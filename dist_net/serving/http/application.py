"""The pool over HTTP: the ASGI application with every address, and the page's files."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dist_net.clock import Clock, SystemClock
from dist_net.errors import DistNetError
from dist_net.release import VERSION
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.bodies import Bodies
from dist_net.serving.http.classify import Classification
from dist_net.serving.http.guard import PAGE_HEADERS, Guard
from dist_net.serving.http.open_inference.infer import InferEndpoint, is_inference
from dist_net.serving.http.open_inference.models import Models
from dist_net.serving.http.pool_metrics import PoolCollector, metrics_route
from dist_net.serving.http.refusals import Refusals
from dist_net.serving.http.replies import Json, error_reply, fault_reply, raised_reply
from dist_net.serving.http.sample_images import SampleImages
from dist_net.serving.http.settings import HttpSettings

PAGE = Path(__file__).parent / "page"
_OPENAPI = Path(__file__).parent / "openapi.json"
# These need no token: probes learn only whether to send requests here, and the description of the
# interface is the same everywhere.
_OPEN = ("/v2/health/live", "/v2/health/ready", "/openapi.json")
_NOT_OFFERED = (
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/logging",
)
_SHOWN_LABELS = 12  # enough to tell a visitor what a model knows


def application(
    gateway: Gateway,
    settings: HttpSettings,
    clock: Clock | None = None,
    page: Path = PAGE,
    refusals: Refusals | None = None,
) -> ASGIApp:
    """Return the application that puts requests over HTTP to ``gateway``.

    ``clock`` is the one that the pool counts time by; by default the machine's. ``page`` is the
    directory of the page's files. ``refusals`` are shown in the metrics; pass the HTTP server's.
    """
    refusals = refusals or Refusals()
    bodies = Bodies(settings)
    inference = InferEndpoint(gateway, bodies)
    files = page_routes(page)
    routes = [
        *Models(gateway, bodies, settings.max_batch_size, clock or SystemClock()).routes(),
        *Classification(gateway, bodies).routes(),
        *SampleImages(gateway).routes(),
        _pool_route(gateway),
        metrics_route(PoolCollector(gateway, refusals)),
        _openapi_route(),
        *(Route(path, _not_offered, methods=["GET", "POST"]) for path in _NOT_OFFERED),
        *files,
    ]
    guard = Guard(settings, frozenset((*_OPEN, *(route.path for route in files))))
    return _Application(guard, refusals, inference, _starlette(routes))


class _Application:
    """Asks the guard about each request, and spares inference the search among the routes."""

    def __init__(
        self, guard: Guard, refusals: Refusals, inference: InferEndpoint, rest: ASGIApp
    ) -> None:
        self._guard = guard
        self._refusals = refusals
        self._inference = inference
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = self._refusals.noting(scope, send)
            refusal = self._guard.refusal(scope)
            if refusal is not None:
                await error_reply(*refusal)(scope, receive, send)
                return
            if is_inference(scope):
                await self._inference(scope, receive, send)
                return
        await self._rest(scope, receive, send)


def _starlette(routes: list[Route]) -> Starlette:
    """Everything but inference; all errors are JSON."""
    rest = Starlette(
        routes=routes,
        exception_handlers={
            DistNetError: _raised,
            HTTPException: _no_such_address,
            Exception: _fault,  # Starlette raises it again, and uvicorn logs it
        },
    )
    rest.router.redirect_slashes = False
    return rest


async def _raised(_: Request, error: Exception) -> Json:
    assert isinstance(error, DistNetError)
    return raised_reply(error)


async def _fault(*_: object) -> Json:
    return fault_reply()


async def _no_such_address(request: Request, error: Exception) -> Json:
    """The reply for an unknown address, or for a method that the address does not take."""
    assert isinstance(error, HTTPException)
    reply = error_reply(
        error.status_code,
        f"{error.detail}: {request.method} {_path(request)}; see /openapi.json for what there is",
    )
    allowed = (error.headers or {}).items()
    reply.raw_headers += [(name.lower().encode(), value.encode()) for name, value in allowed]
    return reply


async def _not_offered(request: Request) -> Json:
    """The reply for parts of the protocol that are left out."""
    return error_reply(501, f"{_path(request)} is not offered; see /openapi.json for what is")


def _path(request: Request) -> str:
    """The path for a message; ``request.url`` would fail for a query that is not text."""
    path: str = request.scope["path"]
    return repr(path[:80])


def page_routes(directory: Path = PAGE) -> list[Route]:
    """A route for each of the page's files: `/page.css`, say, and `/` for index.html."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [
        _file_route(f"/{path.relative_to(directory).as_posix()}".replace("/index.html", "/"), path)
        for path in files
    ]


def _file_route(address: str, path: Path) -> Route:
    """A file of the page, read once and sent from memory."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = PAGE_HEADERS | {"etag": tag, "cache-control": "no-cache"}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(address, file)


def _openapi_route() -> Route:
    """`/openapi.json`: every address but the page's, described as OpenAPI 3.1."""
    document = json.loads(_OPENAPI.read_bytes())
    document["info"]["version"] = VERSION

    async def openapi(_: Request) -> Json:
        return Json(document)

    return Route("/openapi.json", openapi)


def _pool_route(gateway: Gateway) -> Route:
    """`/pool`: ``gateway.status``, with what the page shows of each model."""

    def shown(name: str) -> dict[str, Any]:
        served = gateway.models().get(name)
        if served is None or served.description is None:
            return {"labels": ()}
        model = served.description
        return {
            "labels": model.labels[:_SHOWN_LABELS],
            "input_shape": model.input_shape,
            "fitting": "letterbox" if model.input_datatype == "FP32" else model.fitting,
            "unknown_below": model.unknown_below,
            "samples": len(served.samples),
        }

    async def pool(_: Request) -> Json:
        """The pool now: workers, queue, models."""
        status = gateway.status()
        models = [each | shown(each["name"]) for each in status["models"]]
        return Json(status | {"models": models})

    return Route("/pool", pool)
