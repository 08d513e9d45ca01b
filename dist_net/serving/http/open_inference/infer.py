"""POST /v2/models/MODEL[/versions/VERSION]/infer, which most requests are for.

A plain ASGI function: Starlette's routing and its request and response objects would take longer
than the whole function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from starlette.types import Receive, Scope, Send

from dist_net.errors import DistNetError, ModelNotServedError
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.asking import ask, description_of, version_number
from dist_net.serving.http.bodies import Bodies, Body, headers_of, size_header
from dist_net.serving.http.open_inference.codec import encode_response, read_request
from dist_net.serving.http.replies import (
    JSON_LENGTH,
    error_reply,
    fault_reply,
    raised_reply,
    result_reply,
    send_answer,
)
from dist_net.serving.pool.requests import Result, Status


def is_inference(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.endswith("/infer") and path.startswith("/v2/models/")


class InferEndpoint:
    """Answers inference requests for one model."""

    def __init__(self, gateway: Gateway, bodies: Bodies) -> None:
        self._gateway = gateway
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except DistNetError as error:
            await raised_reply(error)(scope, receive, send)
        except Exception:
            await fault_reply()(scope, receive, send)
            raise  # uvicorn logs it

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, version = _model_and_version(scope["path"])
        if scope["method"] != "POST":
            reply = error_reply(405, f"{scope['method']} of an inference; expected POST")
            reply.raw_headers.append((b"allow", b"POST"))
            await reply(scope, receive, send)
            return
        headers = headers_of(scope)
        json_bytes = size_header(headers, JSON_LENGTH)
        with Body(self._bodies) as body:
            content = await body.receive(headers, receive)
            if content is None:
                return
            parsed_bytes = len(content) if json_bytes is None else json_bytes
            model = None
            # A model may be loaded while a thread parses: the model that answers must be the model
            # that the request was checked for. `ask` admits the request before its first await.
            while (newest := description_of(self._gateway, name, version)) is not model:
                model = newest
                read = partial(read_request, content, json_bytes, model, version)
                questions, wanted = await body.off_loop(parsed_bytes, read)
            results = await ask(self._gateway, questions, receive)
            if (failed := _first_failure(results)) is not None:
                await result_reply(failed)(scope, receive, send)
                return
            rows = sum(question.rows for question in questions)
            answer, json_bytes = encode_response(name, rows, results, wanted)
            await send_answer(send, answer, json_bytes)


def _model_and_version(path: str) -> tuple[str, int | None]:
    """Return the model and the version in a path. Raise ModelNotServedError."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version_number(version)
    raise ModelNotServedError(
        f"nothing is at {path[:80]!r}; expected /v2/models/MODEL/infer or "
        f"/v2/models/MODEL/versions/VERSION/infer"
    )


def _first_failure(results: Sequence[Result]) -> Result | None:
    """Return the first result that is not OK: the protocol has no partial answers."""
    for place, result in enumerate(results, 1):
        if result.status != Status.OK:
            if len(results) == 1:
                return result
            return replace(result, reason=f"image {place} of {len(results)}: {result.reason}")
    return None
