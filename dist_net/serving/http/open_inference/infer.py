"""POST /v2/models/MODEL[/versions/VERSION]/infer, the protocol's inference request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import (
    HttpExchange,
    RequestMemory,
    description_of,
    version_number,
)
from dist_net.serving.http.open_inference.codec import encode_response, read_request
from dist_net.serving.http.replies import JSON_LENGTH, HttpReply, result_reply
from dist_net.serving.pool.requests import Result, Status


class InferEndpoint:
    """The endpoint of inference requests: an ASGI application, cheaper than a function's route."""

    def __init__(self, gateway: Gateway, memory: RequestMemory) -> None:
        self._gateway = gateway
        self._memory = memory

    def routes(self) -> list[Route]:
        """Return the routes to the newest version and to a named one."""
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [Route(f"{model}/infer", self, methods=["POST"]) for model in models]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = await _infer(self._gateway, self._memory, Request(scope, receive))
        await reply(scope, receive, send)


async def _infer(gateway: Gateway, memory: RequestMemory, request: Request) -> HttpReply:
    name, version = request.path_params["model"], version_number(request)
    with HttpExchange(memory, request) as exchange:
        json_bytes = exchange.size_header(JSON_LENGTH)
        content = await exchange.body()
        parsed_bytes = len(content) if json_bytes is None else json_bytes
        model = None
        # A model may be loaded while a thread parses: the model that answers must be the model
        # that the request was checked for. ``infer`` admits the request before its first await.
        while (newest := description_of(gateway, name, version)) is not model:
            model = newest
            read = partial(read_request, content, json_bytes, model, version)
            requests, form = await exchange.off_loop(parsed_bytes, read)
        results = await exchange.infer(gateway, requests)
        if (failed := _first_failure(results)) is not None:
            return result_reply(failed)
        rows = sum(each.rows for each in requests)
        answer, json_bytes = encode_response(name, rows, results, form)
    if json_bytes is None:
        return HttpReply(answer)
    length = (JSON_LENGTH, b"%d" % json_bytes)
    return HttpReply(answer, headers=[length], content_type=b"application/octet-stream")


def _first_failure(results: Sequence[Result]) -> Result | None:
    """Return the first result that is not OK: the protocol has no partial answers."""
    for place, result in enumerate(results, 1):
        if result.status != Status.OK:
            if len(results) == 1:
                return result
            return replace(result, reason=f"image {place} of {len(results)}: {result.reason}")
    return None
