"""The protocol's addresses that manage models: which there are, load, unload."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.routing import Route

from dist_net.errors import BadRequestError, RequestTooLargeError, UnsupportedRequestError
from dist_net.serving.gateway.service import Service
from dist_net.serving.http.asking import served_model
from dist_net.serving.http.bodies import Bodies, headers_of
from dist_net.serving.http.open_inference.metadata import repository_index
from dist_net.serving.http.open_inference.request import MOST_JSON_BYTES
from dist_net.serving.http.replies import Json, outcome_reply
from dist_net.serving.pool.requests import Outcome, Status

_OWN_FILES = ("config", "file:")


class Repository:
    """What these addresses answer."""

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service = service
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """Where each is found."""
        model = "/v2/repository/models/{model}"
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(f"{model}/load", self.load, methods=["POST"]),
            Route(f"{model}/unload", self.unload, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Json:
        """Every version that is served; of ``{"ready": true}`` those that can be asked."""
        asked = await self._content(request)
        models = self._service.models().values()
        return Json(repository_index(models, asked.get("ready") is True))

    async def load(self, request: Request) -> Json:
        """Reads a model again from its source; the answer comes once it was read."""
        parameters = (await self._content(request)).get("parameters")
        if isinstance(parameters, dict) and any(name.startswith(_OWN_FILES) for name in parameters):
            raise UnsupportedRequestError(
                "a model's files come from where the server's command line says; expected a load "
                "without config and files"
            )
        name = served_model(self._service, request.path_params["model"]).name
        return _reply(name, await self._service.reload(name))

    async def unload(self, request: Request) -> Json:
        """Serves a model no longer."""
        await self._content(request)
        name = served_model(self._service, request.path_params["model"]).name
        return _reply(name, self._service.unload(name))

    async def _content(self, request: Request) -> dict[str, Any]:
        """The body, a JSON object or nothing."""
        with self._bodies.next() as body:
            text = await body.receive(headers_of(request.scope), request.receive)
            if not text:
                return {}
            if len(text) > MOST_JSON_BYTES:
                raise RequestTooLargeError(
                    f"{len(text):,} bytes of JSON; expected at most {MOST_JSON_BYTES:,}"
                )
            try:
                content = await body.off_loop(len(text), lambda: orjson.loads(text))
            except orjson.JSONDecodeError as error:
                raise BadRequestError(f"the request is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise BadRequestError("the request is no JSON object; expected one, or no body")
        return content


def _reply(name: str, outcome: Outcome) -> Json:
    if outcome.status != Status.OK:
        return outcome_reply(outcome)
    return Json({"name": name, "version": str(outcome.version)})
