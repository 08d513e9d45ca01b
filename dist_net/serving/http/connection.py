"""A connection of uvicorn's, with limits on headers, time, pipelining, and how many there are.

What comes in is bounded where it is kept. The parser collects a header or a trailer until it is
whole, so bytes are counted until it has made something of them. uvicorn stops reading from a
connection whose body nobody fetches, and ``Bodies`` counts those that are fetched.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle, Transport
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dist_net.serving.http.replies import JSON_HEADERS, error_content, error_headers
from dist_net.serving.http.settings import HttpSettings

_MALFORMED = (400, "this is no request of HTTP/1.1; expected one")


class _LimitError(Exception):
    """Ends the parsing of a request; never leaves the parser."""


def limited_protocol(settings: HttpSettings) -> type[HttpToolsProtocol]:
    """The class of connections with these limits, as uvicorn's configuration takes one."""

    class Limited(LimitedProtocol):
        limits = settings

    return Limited


class _Joining:
    """A transport that writes a reply's head together with its body, by one system call."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Writes ``data`` with what was kept, or keeps it until more comes in this turn."""
        if self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._head = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Closes the transport when all is written."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the transport is."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request that breaks a limit is refused, and the connection closed."""

    limits: HttpSettings

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._refusal = _MALFORMED
        self._unparsed_bytes = 0
        # How long the part of a request may take that is coming in now; None: none is.
        self._allowed_s: float | None = None
        self._is_new_part = False
        self._deadline: TimerHandle | None = None
        self._write_deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Takes the connection, unless there are too many; its first request is awaited."""
        super().connection_made(transport)
        self._joining: Any = _Joining(transport, self.loop)
        if len(self.connections) > self.limits.connections:
            self._refusal = (503, f"{self.limits.connections:,} connections are open already")
            self.send_400_response("")
            return
        self._expect(self.limits.header_timeout_s)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timers."""
        super().connection_lost(exc)
        # uvicorn leaves it running where the client broke off, and with it all of the request.
        self._unset_keepalive_if_required()
        self._allowed_s = None
        self._set_deadline()
        self._end_write_deadline()

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > self.limits.header_bytes and self._allowed_s is not None:
            self._refusal = self._headers_too_large()
            self.send_400_response("")
        elif self._is_new_part and (self._deadline or self._allowed_s) is not None:
            self._set_deadline()

    def pause_writing(self) -> None:
        """The client does not read its answer; it is not awaited for ever."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(
            self.limits.body_timeout_s, self.transport.abort
        )

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._end_write_deadline()

    def timeout_keep_alive_handler(self) -> None:
        """Ends an idle connection; closing it would wait for a client that does not read."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuses what came, for the reason that was noted, and closes the connection.

        It says so unless that would get into the midst of another answer.
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

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request's first byte came."""
        self._expect(self.limits.header_timeout_s)
        if len(self.pipeline) >= self.limits.pipelined:
            self._refuse(400, f"more than {self.limits.pipelined} requests at once")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are whole."""
        self._expect(self.limits.body_timeout_s)
        if (
            len(self.headers) > self.limits.headers
            or len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > self.limits.header_bytes
        ):
            self._refuse(*self._headers_too_large())
        super().on_headers_complete()

        self.cycle.transport = self._joining

    def on_body(self, body: bytes) -> None:
        """A piece of its body came."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._expect(None)
        super().on_message_complete()

    # What these share

    def _expect(self, allowed_s: float | None) -> None:
        """Notes that another part of a request begins, or None; the timer is set afterwards."""
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
        """The rest of a request did not come in time; unless we do not read it for now."""
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
