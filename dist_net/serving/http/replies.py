"""Replies in JSON, the status code of each error and result, and the record of refusals."""

import logging
import time
from collections import Counter
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
    QuotaExceededError,
    RequestTooLargeError,
)
from dist_net.serving.pool.requests import Result, Status

logger = logging.getLogger(__name__)

Header = tuple[bytes, bytes]

REQUEST_ID = b"x-request-id"
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
    (QuotaExceededError, 429),
    (PoolUnavailableError, 503),
    (DistNetError, 500),
)
_COMMON_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
_HEADERS_OF_CODE: dict[int, list[Header]] = {
    401: [(b"www-authenticate", b"Bearer")],
}
_RETRIABLE = (429, 503)
_MAX_LINES = 20
_PERIOD_S = 60.0
MAX_REASON = 300


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
        own = (b"content-type", content_type), (b"content-length", b"%d" % len(body))
        self.raw_headers = [*own, *_COMMON_HEADERS, *headers]


class Json(HttpReply):
    """A response with JSON content: any object that orjson can write."""

    def __init__(self, content: Any, code: int = 200, headers: Iterable[Header] = ()) -> None:
        super().__init__(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), code, headers)


def error_reply(code: int, reason: str, retry_after_s: float = 0.0, **more: Any) -> Json:
    headers = _HEADERS_OF_CODE.get(code, [])
    if code in _RETRIABLE:
        headers = [(b"retry-after", b"%d" % max(1, ceil(retry_after_s)))]
    return Json(error_content(reason, retry_after_s) | more, code, headers)


def code_of_error(error: DistNetError) -> int:
    code = next(code for kind, code in CODE_OF_ERROR if isinstance(error, kind))
    return error.http_code if isinstance(error, BadRequestError) else code


def raised_reply(error: DistNetError) -> Json:
    retry_after_s = error.retry_after_s if isinstance(error, PoolUnavailableError) else 0.0
    return error_reply(code_of_error(error), str(error), retry_after_s)


def result_reply(result: Result, **more: Any) -> Json:
    code = CODE_OF_STATUS[result.status]
    return error_reply(code, result.reason, result.retry_after_s, **more)


class Refusals:
    """Counts refusals by status code in ``counts``, and logs at most 20 of each code a minute."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._period: Counter[int] = Counter()
        self._period_ends_s = 0.0

    def note(self, code: int, request: str, reason: str, request_id: str = "") -> None:
        """Count a refusal, and log it unless too many were logged in this minute."""
        now = time.monotonic()
        if now >= self._period_ends_s:
            left_out = sum(max(0, count - _MAX_LINES) for count in self._period.values())
            if left_out:
                logger.warning("refusals_not_logged requests=%d", left_out)
            self._period.clear()
            self._period_ends_s = now + _PERIOD_S
        self.counts[code] += 1
        self._period[code] += 1
        if self._period[code] <= _MAX_LINES:
            what = "request_refused id=%s code=%d request=%r reason=%r"
            logger.warning(what, request_id, code, request, reason[:MAX_REASON])
