"""Replies in JSON, and the status code of each error and result."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import orjson
from starlette.responses import Response

from dist_net.errors import (
    BadInputError,
    BadRequestError,
    DistNetError,
    ModelNotServedError,
    PoolUnavailableError,
    RequestTooLargeError,
)
from dist_net.serving.pool.requests import Result, Status

Header = tuple[bytes, bytes]

JSON_LENGTH = b"inference-header-content-length"
CODE_OF_STATUS = {
    Status.OK: 200,
    Status.BAD_INPUT: 400,
    Status.NOT_FOUND: 404,
    Status.UNAVAILABLE: 503,
    Status.EXPIRED: 504,
    Status.FAILED: 500,
    Status.CANCELLED: 503,  # sent only if the server cancelled; otherwise the client has gone
}
# The first class that an error is an instance of counts.
CODE_OF_ERROR: tuple[tuple[type[DistNetError], int], ...] = (
    (RequestTooLargeError, 413),
    (ModelNotServedError, 404),
    (BadInputError, 400),
    (PoolUnavailableError, 503),
    (DistNetError, 500),
)
_COMMON_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
_HEADERS_OF_CODE: dict[int, list[Header]] = {
    401: [(b"www-authenticate", b"Bearer")],
    408: [(b"connection", b"close")],
    431: [(b"connection", b"close")],
}
_UNAVAILABLE = 503


def code_of_error(error: DistNetError) -> int:
    """Return the HTTP status code of an error."""
    if isinstance(error, BadRequestError):
        return error.http_code
    return next(code for kind, code in CODE_OF_ERROR if isinstance(error, kind))


def error_content(reason: str, retry_after_s: float = 0.0) -> dict[str, Any]:
    """Return the JSON object of an error; unlike Retry-After, it has fractions of seconds."""
    return {"error": reason} | ({"retry_after_s": retry_after_s} if retry_after_s else {})


class HttpReply(Response):
    """A response with headers as bytes, which are cheaper than Starlette's."""

    def __init__(
        self,
        body: bytes,
        code: int = 200,
        headers: Iterable[Header] = (),
        content_type: bytes = b"application/json",
    ) -> None:
        super().__init__(body, code)
        self.raw_headers = [
            (b"content-type", content_type),
            *_COMMON_HEADERS,
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]


class Json(HttpReply):
    """A response with JSON content: any object that orjson can write."""

    def __init__(self, content: Any, code: int = 200, headers: Iterable[Header] = ()) -> None:
        super().__init__(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), code, headers)


def error_reply(code: int, reason: str, retry_after_s: float = 0.0, **more: Any) -> Json:
    """Return the response for an error, with ``more`` in its JSON object."""
    headers = _HEADERS_OF_CODE.get(code, [])
    if code == _UNAVAILABLE:
        headers = [(b"retry-after", b"%d" % max(1, ceil(retry_after_s)))]
    return Json(error_content(reason, retry_after_s) | more, code, headers)


def raised_reply(error: DistNetError) -> Json:
    """Return the response for an exception."""
    retry_after_s = error.retry_after_s if isinstance(error, PoolUnavailableError) else 0.0
    return error_reply(code_of_error(error), str(error), retry_after_s)


def result_reply(result: Result, **more: Any) -> Json:
    """Return the response for a result that is not OK."""
    code = CODE_OF_STATUS[result.status]
    return error_reply(code, result.reason, result.retry_after_s, **more)
