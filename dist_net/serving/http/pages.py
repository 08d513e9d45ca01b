"""The page's files, its sample images, and the JSON documents about the pool and its interface."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dist_net.errors import ModelNotServedError
from dist_net.release import VERSION
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import served_model
from dist_net.serving.http.replies import HttpReply, Json

PAGE = Path(__file__).parent / "page"
_OPENAPI = Path(__file__).parent / "openapi.json"
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_SHOWN_LABELS = 12  # enough to show a visitor the kind of classes


def page_routes(directory: Path = PAGE) -> list[Route]:
    """Return a route for each file of the page, such as ``/page.css``; ``/`` is index.html."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [
        _file_route(f"/{path.relative_to(directory).as_posix()}".replace("/index.html", "/"), path)
        for path in files
    ]


def _file_route(address: str, path: Path) -> Route:
    """Return the route of a file, which is read once and sent from memory."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = _HEADERS | {"etag": tag}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(address, file)


def openapi_route() -> Route:
    """Return the route ``/openapi.json``, which describes every path except the page's."""
    document = json.loads(_OPENAPI.read_bytes())
    document["info"]["version"] = VERSION

    async def openapi(_: Request) -> Json:
        return Json(document)

    return Route("/openapi.json", openapi)


def pool_route(gateway: Gateway) -> Route:
    """Return the route ``/pool``: ``gateway.status``, and the facts of each model for the page."""

    def facts(name: str) -> dict[str, Any]:
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
        """Return the current state of the pool: workers, queue, models."""
        status = gateway.status()
        return Json(status | {"models": [each | facts(each["name"]) for each in status["models"]]})

    return Route("/pool", pool)


def sample_routes(gateway: Gateway) -> list[Route]:
    """Return the routes of the sample images, which the model's run held out."""

    async def samples(request: Request) -> Json:
        """List the class and the path of each sample image."""
        model = served_model(gateway, request.path_params["model"])
        path = f"/v1/models/{model.name}/samples"
        listed = enumerate(model.samples)
        return Json([{"label": each.name, "path": f"{path}/{number}"} for number, each in listed])

    async def sample(request: Request) -> HttpReply:
        """Return a sample image."""
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
