"""The page's files, from memory, and the data that it shows of the pool."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dist_net.serving.gateway.service import Service
from dist_net.serving.http.replies import Json
from dist_net.serving.http.security import PAGE_HEADERS

DIRECTORY = Path(__file__).parents[1] / "page"
# As many labels as tell a visitor what a model knows.
SHOWN_LABELS = 12


def page_routes(directory: Path = DIRECTORY) -> list[Route]:
    """A route for each file: `/page.css`, say, and `/` for index.html. None needs a token."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [
        _file_route(f"/{path.relative_to(directory).as_posix()}".replace("/index.html", "/"), path)
        for path in files
    ]


def pool_route(service: Service) -> Route:
    """`/pool`: what ``service.status`` says, with some labels of each model."""

    async def pool(_: Request) -> Json:
        status = service.status()
        models = [each | {"labels": _labels(service, each["name"])} for each in status["models"]]
        return Json(status | {"models": models})

    return Route("/pool", pool)


def _labels(service: Service, name: str) -> tuple[str, ...]:
    served = service.models().get(name)
    described = served.description if served else None
    return described.labels[:SHOWN_LABELS] if described else ()


def _file_route(address: str, path: Path) -> Route:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = PAGE_HEADERS | {"etag": tag, "cache-control": "no-cache"}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(address, file)
