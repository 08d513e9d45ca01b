"""Refused requests: a count for each status code, and a limited number of lines in the log."""

from __future__ import annotations

import logging
import time
from collections import Counter

from starlette.types import Message, Scope, Send

logger = logging.getLogger(__name__)

_MAX_LINES = 20
_PERIOD_S = 60.0
_MAX_REASON = 300
_FIRST_REFUSAL = 400


class Refusals:
    """Counts refusals by status code in ``counts``, and logs at most 20 of each code a minute."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._period: Counter[int] = Counter()
        self._period_ends_s = 0.0

    def note(self, code: int, request: str, reason: str) -> None:
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
            what = "request_refused code=%d request=%r reason=%r"
            logger.warning(what, code, request, reason[:_MAX_REASON])

    def noting(self, scope: Scope, send: Send) -> Send:
        """Return a ``send`` that notes the response if it is a refusal."""
        code = 0

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            elif code >= _FIRST_REFUSAL:
                reason = bytes(message.get("body", b"")[:_MAX_REASON]).decode(errors="replace")
                self.note(code, f"{scope['method']} {scope['path'][:80]}", reason)
            await send(message)

        return noted
