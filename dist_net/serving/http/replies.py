"""Replies in JSON, and the status code of each error and result."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Send

from dist_net.errors import (
    BadInputError,
    DistNetError,
    ModelNotServedError,
    PoolUnavailableError,
    RequestTooLargeError,
    SlowRequestError,
    UnsupportedEncodingError,
    UnsupportedRequestError,
)
from dist_net.serving.pool.requests import Result, Status

Header = tuple[bytes, bytes]
Headers = list[Header]

JSON_HEADERS: Headers = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
_BINARY_HEADERS: Headers = [(b"content-type", b"application/octet-stream"), *JSON_HEADERS[1:]]
JSON_LENGTH = b"inference-header-content-length"
CODE_OF_STATUS = {
    Status.OK: 200,
    Status.BAD_INPUT: 400,
    Status.NOT_FOUND: 404,
    Status.UNAVAILABLE: 503,
    Status.EXPIRED: 504,
    Status.FAILED: 500,
    Status.CANCELLED: 503,  # read only if the server cancelled; else the client has gone
}
# The first class that an error is an instance of counts.
CODE_OF_ERROR: tuple[tuple[type[DistNetError], int], ...] = (
    (SlowRequestError, 408),
    (RequestTooLargeError, 413),
    (UnsupportedEncodingError, 415),
    (UnsupportedRequestError, 501),
    (ModelNotServedError, 404),
    (BadInputError, 400),
    (PoolUnavailableError, 503),
    (DistNetError, 500),
)
_HEADERS_OF_CODE: dict[int, Headers] = {
    401: [(b"www-authenticate", b"Bearer")],
    408: [(b"connection", b"close")],
    431: [(b"connection", b"close")],
}
_UNAVAILABLE = 503


def code_of_error(error: DistNetError) -> int:
    return next(code for kind, code in CODE_OF_ERROR if isinstance(error, kind))


def error_content(reason: str, retry_after_s: float = 0.0) -> dict[str, Any]:
    """The JSON object of every error; the header Retry-After knows only whole seconds."""
    return {"error": reason} | ({"retry_after_s": retry_after_s} if retry_after_s else {})


def error_headers(code: int, retry_after_s: float = 0.0) -> Headers:
    """The headers that an error with this status code needs."""
    if code == _UNAVAILABLE:
        return [(b"retry-after", b"%d" % max(1, ceil(retry_after_s)))]
    return _HEADERS_OF_CODE.get(code, [])


class Json(Response):
    """A reply whose content is anything that orjson can write."""

    def __init__(self, content: Any, code: int = 200, headers: Iterable[Header] = ()) -> None:
        body = orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)
        super().__init__(body, code)
        self.raw_headers = [*JSON_HEADERS, _length(body), *headers]


def error_reply(code: int, reason: str, retry_after_s: float = 0.0, **more: Any) -> Json:
    """An error, with ``more`` in its JSON object."""
    content = error_content(reason, retry_after_s) | more
    return Json(content, code, error_headers(code, retry_after_s))


def raised_reply(error: DistNetError) -> Json:
    retry_after_s = error.retry_after_s if isinstance(error, PoolUnavailableError) else 0.0
    return error_reply(code_of_error(error), str(error), retry_after_s)


def result_reply(result: Result, **more: Any) -> Json:
    """The reply for an result that is not OK."""
    code = CODE_OF_STATUS[result.status]
    return error_reply(code, result.reason, result.retry_after_s, **more)


def fault_reply() -> Json:
    """The reply for an exception that nobody expected; the log says which."""
    return error_reply(500, "internal error; see the server's log")


async def send_answer(send: Send, body: bytes, json_bytes: int | None) -> None:
    """Send an inference's JSON, followed by raw tensors unless ``json_bytes`` is None.

    Cheaper than a ``Response``.
    """
    start = [*JSON_HEADERS, _length(body)]
    if json_bytes is not None:
        start = [*_BINARY_HEADERS, _length(body), (JSON_LENGTH, b"%d" % json_bytes)]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _length(body: bytes) -> Header:
    return b"content-length", b"%d" % len(body)
