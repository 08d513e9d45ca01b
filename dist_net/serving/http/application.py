"""The ASGI application of the pool: every route, the page's files, and the errors as JSON."""

import json
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from dist_net.errors import DistNetError, ModelNotServedError
from dist_net.ground.clock import Clock, SystemClock
from dist_net.ground.release import VERSION
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.classify import Classification
from dist_net.serving.http.exchange import Guard, RequestMemory, served_model
from dist_net.serving.http.labels import Labels
from dist_net.serving.http.model_endpoints import Models
from dist_net.serving.http.open_inference import InferEndpoint
from dist_net.serving.http.page_files import PAGE, page_routes
from dist_net.serving.http.pool_metrics import metrics_route, pool_metrics
from dist_net.serving.http.replies import HttpReply, Json, Refusals, error_reply, raised_reply
from dist_net.serving.http.settings import HttpSettings

_OPENAPI = Path(__file__).parent / "openapi.json"
_SHOWN_LABELS = 12  # enough to show a visitor the kind of classes
# No token is needed: probes learn only whether to send requests to this server, and the
# description of the interface is the same for all servers.
_OPEN = ("/v2/health/live", "/v2/health/ready", "/openapi.json")


def application(
    gateway: Gateway,
    settings: HttpSettings,
    clock: Clock | None = None,
    *,
    page: Path = PAGE,
    ledger: ClientLedger | None = None,
    collections: Mapping[str, Path] | None = None,
) -> Guard:
    """Return the application that passes requests over HTTP to ``gateway``.

    ``clock`` is the pool's, by default the system's. ``page`` is the directory of the page's files.
    ``ledger`` is the gateway's.
    ``collections``: the labels of each model that is taught.
    """
    refusals = Refusals()
    ledger = ledger or ClientLedger(settings.queue_bytes)
    memory = RequestMemory(settings)
    files = page_routes(page)
    routes = [
        *InferEndpoint(gateway, memory).routes(),
        *Classification(gateway, memory).routes(),
        *Models(gateway, memory, clock or SystemClock()).routes(),
        *Labels(gateway, memory, collections or {}).routes(),
        *sample_routes(gateway),
        pool_route(gateway, collections or {}, collects=settings.collects),
        metrics_route(partial(pool_metrics, gateway, refusals, ledger)),
        openapi_route(),
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
    pages = (f"/report/{name}" for name in collections or {})
    open_paths = frozenset((*_OPEN, *pages, *(route.path for route in files)))
    return Guard(starlette, settings, open_paths, refusals, ledger)


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
        # ``request.url`` would fail for a query that is not text.
        f"{error.detail}: {request.method} {request.scope['path'][:80]!r}; see /openapi.json for "
        f"all paths",
    )
    allowed = (error.headers or {}).items()
    reply.raw_headers += [(name.lower().encode(), value.encode()) for name, value in allowed]
    return reply


def openapi_route() -> Route:
    """Return the route ``/openapi.json``, which describes every path except the page's."""
    document = json.loads(_OPENAPI.read_bytes())
    document["info"]["version"] = VERSION

    async def openapi(_: Request) -> Json:
        return Json(document)

    return Route("/openapi.json", openapi)


def pool_route(gateway: Gateway, taught: Container[str] = (), *, collects: bool = False) -> Route:
    """Return the route ``/pool``: ``gateway.status``, and the facts of each model for the page."""

    def facts(name: str) -> dict[str, Any]:
        served = gateway.models().get(name)
        if served is None or served.description is None:
            return {"labels": ()}
        drift = [known for each in gateway.drift if (known := each.facts())]
        model = served.description
        return {
            "labels": model.labels[:_SHOWN_LABELS],
            "input_shape": model.input_shape,
            "fitting": "letterbox" if model.input_datatype == "FP32" else model.fitting,
            "unknown_below": model.unknown_below,
            "samples": len(served.samples),
            "is_taught": name in taught,
            "drift": next((each for each in drift if each["model"] == name), None),
            "is_collected": collects and name in taught,
        }

    async def pool(_: Request) -> Json:
        status = gateway.status()
        return Json(status | {"models": [each | facts(each["name"]) for each in status["models"]]})

    return Route("/pool", pool)


def sample_routes(gateway: Gateway) -> list[Route]:
    """Return the routes of the sample images, which the model's run held out."""

    async def samples(request: Request) -> Json:
        model = served_model(gateway, request.path_params["model"])
        path = f"/v1/models/{model.name}/samples"
        listed = enumerate(model.samples)
        return Json([{"label": each.name, "path": f"{path}/{number}"} for number, each in listed])

    async def sample(request: Request) -> HttpReply:
        model = served_model(gateway, request.path_params["model"])
        number = request.path_params["number"]
        by_number = {str(place): each for place, each in enumerate(model.samples)}
        if number not in by_number:
            raise ModelNotServedError(
                f"{model.name} has no sample {number[:40]!r}; /v1/models/{model.name}/samples "
                f"lists them"
            )
        return HttpReply(bytes(by_number[number].content), content_type=b"image/png")

    return [
        Route("/v1/models/{model}/samples", samples),
        Route("/v1/models/{model}/samples/{number}", sample),
    ]
