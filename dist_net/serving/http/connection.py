"""A connection of uvicorn's with limits: headers, time, pipelined requests, open connections.

All memory is bounded. The parser collects a header or a trailer until it is complete, so the bytes
that it has not yet reported are counted here. uvicorn stops reading from a connection while nobody
fetches its body, and ``Bodies`` counts the bodies that are fetched.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dist_net.serving.http.replies import JSON_HEADERS, error_content, error_headers
from dist_net.serving.http.settings import HttpSettings

_MALFORMED = (400, "this is not an HTTP/1.1 request; expected one")


class _LimitError(Exception):
    """Stops the parser; never leaves it."""


def limited_protocol(settings: HttpSettings) -> type[HttpToolsProtocol]:
    """The class of connections with these limits, for uvicorn's configuration."""

    class Limited(LimitedProtocol):
        limits = settings

    return Limited


class LimitedProtocol(HttpToolsProtocol):
    """One connection. It is closed after refusing a request that exceeds a limit."""

    limits: HttpSettings

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._refusal = _MALFORMED
        self._unparsed_bytes = 0
        # How long the part of a request that is arriving may take; None: no request is.
        self._allowed_s: float | None = None
        self._is_new_part = False
        self._deadline: TimerHandle | None = None
        self._write_deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Waits for the first request, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refusal = (503, f"{self.limits.connections:,} connections are open already")
            self.send_400_response("")
            return
        self._expect(self.limits.header_timeout_s)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn leaves its timer running when a client breaks off, which keeps the request alive.
        self._unset_keepalive_if_required()
        self._allowed_s = None
        self._set_deadline()
        self._end_write_deadline()

    def data_received(self, data: bytes) -> None:
        """Parses the data, and checks what the parser has not yet reported."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > self.limits.header_bytes and self._allowed_s is not None:
            self._refusal = self._headers_too_large()
            self.send_400_response("")
        elif self._is_new_part and (self._deadline or self._allowed_s) is not None:
            self._set_deadline()

    def pause_writing(self) -> None:
        """Limits the time in which a client may leave its answer unread."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(
            self.limits.body_timeout_s, self.transport.abort
        )

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_write_deadline()

    def timeout_keep_alive_handler(self) -> None:
        """Aborts an idle connection; closing it would wait for a client that does not read."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Sends the noted refusal and closes the connection.

        Nothing is sent if that would land in the middle of another answer.
        """
        cycle = self.cycle
        if (
            cycle is None
            or cycle.response_complete
            or not (cycle.response_started or self.pipeline)
        ):
            code, reason = self._refusal
            content = orjson.dumps(error_content(reason))
            about = [
                *JSON_HEADERS,
                *error_headers(code),
                (b"content-length", b"%d" % len(content)),
                (b"connection", b"close"),
            ]
            lines = b"".join(b"%s: %s\r\n" % header for header in about)
            self.transport.write(STATUS_LINE[code] + lines + b"\r\n" + content)
        self.transport.close()

    # Called by the parser

    def on_message_begin(self) -> None:
        self._expect(self.limits.header_timeout_s)
        if len(self.pipeline) >= self.limits.pipelined:
            self._refuse(400, f"more than {self.limits.pipelined} requests at once")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._expect(self.limits.body_timeout_s)
        if (
            len(self.headers) > self.limits.headers
            or len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > self.limits.header_bytes
        ):
            self._refuse(*self._headers_too_large())
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._expect(None)
        super().on_message_complete()

    def _expect(self, allowed_s: float | None) -> None:
        """Notes how long the next part may take, None for no part; the timer is set later."""
        self._allowed_s = allowed_s
        self._is_new_part = True
        self._unparsed_bytes = 0

    def _set_deadline(self) -> None:
        self._is_new_part = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._allowed_s is not None:
            self._deadline = self.loop.call_later(self._allowed_s, self._overdue)

    def _overdue(self) -> None:
        """Aborts, as the rest of a request is late; unless it is we who are not reading."""
        if self.flow.read_paused:
            self._set_deadline()
        else:
            self.transport.abort()

    def _end_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _headers_too_large(self) -> tuple[int, str]:
        return 431, (
            f"the request's line and headers are too large; expected at most "
            f"{self.limits.headers} headers and {self.limits.header_bytes:,} bytes"
        )

    def _refuse(self, code: int, reason: str) -> None:
        self._refusal = (code, reason)
        raise _LimitError
