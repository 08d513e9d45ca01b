"""A request on its way to the pool: permission, its body within limits, its model, its results."""

import asyncio
import re
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dist_net.errors import (
    BadRequestError,
    DistNetError,
    ModelNotServedError,
    PoolUnavailableError,
    QuotaExceededError,
    RequestTooLargeError,
)
from dist_net.ground.spelling import suggestion
from dist_net.serving.gateway.client_ledger import (
    ClientLedger,
    ClientShare,
    LoopShare,
    OpenRequest,
    Value,
)
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.http_connection import HttpConnection
from dist_net.serving.http.replies import (
    JSON_LENGTH,
    MAX_REASON,
    REQUEST_ID,
    Refusals,
    error_reply,
    raised_reply,
)
from dist_net.serving.http.request_log import LOGGED, RequestLog
from dist_net.serving.http.settings import TEACHER, HttpSettings
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.requests import InferenceRequest, Payload, Result, Status
from dist_net.wire.security import OPERATOR

HeaderValues = Mapping[bytes, bytes]

_UNIQUE = (b"host", b"origin", b"authorization", b"content-encoding", b"content-type", JSON_LENGTH)
# Requests that change what is served, and metrics, which name all models and workers.
_OPERATORS_PATHS = ("/v2/repository/models/", "/metrics")
# Labels, and the report, which shows images that the model was trained on.
_TEACHERS_PATHS = re.compile("/v1/models/[^/]*/(labels|report|queue)")

_HEALTH = "/v2/health/"
_PRIVATE = b"x-do-not-collect"
_STALLED_S = 1.0  # when memory runs out, a body that stalled for longer is dropped
_WATCH_AFTER_S = 0.005  # most results arrive earlier and need no task that awaits a disconnect
_MAX_VERSION = 18


@dataclass(frozen=True)
class Guard:
    """ASGI middleware that refuses requests without permission, and counts every refusal."""

    application: ASGIApp
    settings: HttpSettings
    open_paths: frozenset[str]
    refusals: Refusals
    ledger: ClientLedger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        if "state" not in scope:
            scope = {**scope, "state": {}}
        state, headers = scope["state"], dict(scope["headers"])
        named = {n: headers[n.encode()].decode("latin-1") for n in LOGGED if n.encode() in headers}
        log = RequestLog(f"{scope['method']} {scope['path'][:200]}", named)
        send = self._noting(scope, send, log)
        host, _ = scope.get("client") or ("", 0)
        credential = self.settings.credential(host, headers.get(b"authorization", b""))
        state["credential"] = credential
        try:
            if refusal := self._refusal(scope, headers, credential.role):
                await error_reply(*refusal)(scope, receive, send)
            elif scope["path"].startswith(_HEALTH):  # if it fails, supervisors restart the process
                await self.application(scope, receive, send)
            else:
                await self._counted(scope, receive, send, credential.share(self.ledger))
        finally:
            log.end(credential.name, is_logged=self.settings.access_log)

    def _noting(self, scope: Scope, send: Send, log: RequestLog) -> Send:
        """Return a ``send`` that adds the id to the response, and notes it if it is a refusal.

        It closes a connection with its last response.
        """
        connection = scope["state"].get("connection")

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                log.code = message["status"]
                message["headers"].append((REQUEST_ID, log.request_id.encode()))
                if connection is not None and connection.is_last:
                    message["headers"].append((b"connection", b"close"))
            elif log.code >= 400:
                reason = bytes(message.get("body", b"")[:MAX_REASON]).decode(errors="replace")
                path = scope["path"][:80]
                self.refusals.note(log.code, f"{scope['method']} {path}", reason, log.request_id)
            await send(message)

        return noted

    async def _counted(
        self, scope: Scope, receive: Receive, send: Send, share: ClientShare
    ) -> None:
        """Pass a request on within its client's limits; hold its bytes until the answer is read."""
        state = scope["state"]
        connection: HttpConnection | None = state.get("connection")
        if connection is not None:
            connection.belong_to(share)
        try:
            opened = state["opened"] = self.ledger.begin(share, time.monotonic())
        except QuotaExceededError as error:
            await raised_reply(error)(scope, receive, send)
            return
        try:
            await self.application(scope, receive, send)
            if connection is not None:
                await connection.flow.drain()  # until the client has read most of its answers
        finally:
            opened.answered(0)

    def _refusal(self, scope: Scope, headers: HeaderValues, role: str) -> tuple[int, str] | None:
        """Return a status code and the reason to refuse a request; None to accept it."""
        names, path = [name for name, _ in scope["headers"]], scope["path"]
        if repeated := [name.decode() for name in _UNIQUE if names.count(name) > 1]:
            return 400, f"the header {repeated[0]} is repeated; expected it once"
        if self.settings.tokens is None:  # a token proves that no other site's page sends it
            origin, host = headers.get(b"origin"), headers.get(b"host", b"")
            # A proxy may rewrite Host. No page can set Sec-Fetch-Site, but browsers may omit it.
            is_same_origin = headers.get(b"sec-fetch-site") == b"same-origin"
            if origin is not None and not is_same_origin and origin.partition(b"://")[2] != host:
                return 403, (
                    "the request comes from a page of another site; expected a page of this "
                    "server, or a token"
                )
            if not (self.settings.has_tls or _is_this_host(host.decode("latin-1"))):
                # DNS rebinding: if another site's name resolves to this host, the browser treats
                # its pages as pages of this server.
                return 403, (
                    "the header Host is not an IP address or localhost; expected one of these; to "
                    "serve under another name, use a token or TLS"
                )
        if path in self.open_paths:
            return None
        if not role:
            return 401, (
                "the token is missing or wrong; expected the header Authorization: Bearer TOKEN"
            )
        needed = OPERATOR if path.startswith(_OPERATORS_PATHS) else ""
        if _TEACHERS_PATHS.fullmatch(path):
            needed = TEACHER
        if needed and role not in (needed, OPERATOR):
            return 403, (
                f"a {role} may not use {path[:80]!r}; expected the token of an operator "
                f"or {needed} (a line '{needed} TOKEN' in the server's --token-file)"
            )
        return None


@lru_cache(maxsize=64)
def _is_this_host(host: str) -> bool:
    """Return whether a Host header is an IP address or localhost, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


class RequestMemory:
    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.arriving: dict[HttpExchange, None] = {}  # incomplete bodies, oldest first

    def drop_stalled(self) -> bool:
        """Drop the body that has stalled longest; return False if none has stalled."""
        body = max(self.arriving, key=HttpExchange.waited_s, default=None)
        if body is None or body.waited_s() < _STALLED_S:
            return False
        body.give_up()
        return True


class RequestExchange:
    """One request that is open, in the pool's ``queue`` and with a ``loop_share`` of the loop."""

    def __init__(
        self, opened: OpenRequest, queue: str, loop_share: LoopShare, *, is_private: bool
    ) -> None:
        self._opened, self._queue = opened, queue
        self._loop_share, self._is_private = loop_share, is_private
        self._futures: list[asyncio.Future[Result]] = []

    async def in_slices(self, work: Generator[None, None, Value]) -> Value:
        """Return the result of ``work``, which yields about once in a millisecond.

        A thread would not help: a parser holds the interpreter's lock all the time.
        """
        return await self._opened.ledger.turns.in_slices(self._loop_share, work)

    async def infer(
        self, gateway: Gateway, model: ModelDescription, requests: Sequence[InferenceRequest]
    ) -> list[Result]:
        """Return the result of each request, once the body has been received.

        The requests are cancelled if the client disconnects or this task is cancelled. Raise
        PoolUnavailableError without room for their answers.
        """
        self._opened.require_answer(sum(model.answer_bytes(each.rows) for each in requests))
        for request in requests:
            request.client = self._queue
            request.is_private |= self._is_private
        more_follow = bool(self._opened.share.loop.waiting)
        self._futures = [gateway.infer(request, more_follow) for request in requests]
        try:
            results = [await future for future in self._futures]
            self._opened.answered(sum(len(each.payload) for each in results))
            return results
        except asyncio.CancelledError:
            cancelled = Result(Status.CANCELLED, reason="the request was cancelled")
            return [cancelled] * len(requests)
        finally:
            self._cancel()

    def _cancel(self) -> None:
        for future in self._futures:
            future.cancel()


class HttpExchange(RequestExchange):
    """One request; ``Guard`` has opened it."""

    def __init__(self, memory: RequestMemory, request: Request) -> None:
        self.headers: dict[bytes, bytes] = dict(request.scope["headers"])
        self._memory = memory
        self._receive = request.receive
        self._connection: HttpConnection | None = request.scope["state"].get("connection")
        opened: OpenRequest = request.scope["state"]["opened"]
        # Each connection without a token has its own turns in the pool.
        own = memory.settings.tokens is None and request.scope.get("client")
        queue = "{}:{}".format(*own) if own else opened.share.client
        turns = self._connection.turns if self._connection else LoopShare(opened.share.loop)
        super().__init__(opened, queue, turns, is_private=self.headers.get(_PRIVATE) == b"1")

    def size_header(self, name: bytes) -> int | None:
        """Return the number of bytes in a header, or None without it. Raise BadRequestError."""
        value = self.headers.get(name)
        if value is None:
            return None
        if not (value.isdigit() and len(value) < 16):
            raise BadRequestError(
                f"{name.decode('latin-1')} is {value[:40].decode('latin-1')!r}; expected a number "
                f"of bytes"
            )
        return int(value)

    async def body(self) -> Payload:
        """Return the body.

        Raise RequestTooLargeError beyond the limit, PoolUnavailableError when other bodies leave no
        room for it, BadRequestError for a compressed body, and ClientDisconnect if the connection
        ends before it is complete.
        """
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise BadRequestError(
                f"the Content-Encoding is {encoding[:40].decode('latin-1')!r}; expected an "
                f"uncompressed body",
                http_code=415,
            )
        self._require_size(self.size_header(b"content-length") or 0)
        body, is_whole = bytearray(), False
        try:
            while not is_whole:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece: bytes = message.get("body", b"")
                size = len(body) + len(piece)
                self._require_size(size)
                while not self._opened.hold(size) and self._memory.drop_stalled():
                    pass
                self._opened.require(size)
                self._opened.share.account.received_bytes += len(piece)
                is_whole = not message.get("more_body", False)
                if is_whole and not body:
                    return piece  # without a copy, as for most bodies
                body += piece
                self._memory.arriving[self] = None
            return memoryview(body)
        finally:
            self._memory.arriving.pop(self, None)

    async def infer(
        self, gateway: Gateway, model: ModelDescription, requests: Sequence[InferenceRequest]
    ) -> list[Result]:
        watch: list[asyncio.Task[None]] = []

        async def cancel_if_disconnected() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self._cancel()

        loop = asyncio.get_running_loop()
        timer = loop.call_later(
            _WATCH_AFTER_S, lambda: watch.append(loop.create_task(cancel_if_disconnected()))
        )
        try:
            return await super().infer(gateway, model, requests)
        finally:
            timer.cancel()
            for task in watch:
                task.cancel()

    def waited_s(self) -> float:
        """Return how long the client has kept the server waiting for its body."""
        return self._connection.waited_s() if self._connection is not None else 0.0

    def give_up(self) -> None:
        """Stop waiting for the rest of the body."""
        self._memory.arriving.pop(self, None)
        self._opened.hold(0)
        if self._connection is not None:
            self._connection.time_out()

    def _require_size(self, size: int) -> None:
        limit = min(self._memory.settings.body_bytes, self._opened.ledger.max_request_bytes)
        if size > limit:
            raise RequestTooLargeError(
                f"the body has {size:,} bytes or more; expected at most {limit:,}"
            )


def served_model(gateway: Gateway, name: str) -> ServedModel:
    """Return the model of this name. Raise ModelNotServedError."""
    served = gateway.models().get(name)
    if served is None:
        raise ModelNotServedError(f"no model {name[:80]!r}; {suggestion(name, gateway.models())}")
    return served


def description_of(gateway: Gateway, name: str, version: int | None = None) -> ModelDescription:
    """Return the newest description, or a version's. Raise ModelNotServedError; ``not_ready``."""
    description = gateway.description(name, version)
    if description is None:
        served = served_model(gateway, name)
        if version is None or not served.versions:
            raise not_ready(served)
        raise ModelNotServedError(
            f"{served.name} has no version {version}; expected one of "
            f"{', '.join(map(str, served.versions))}"
        )
    return description


def not_ready(served: ServedModel) -> DistNetError:
    """Return the error for a model that no worker serves, or that is unloaded until a reload."""
    if served.is_unloaded:
        return ModelNotServedError(f"{served.name} is not served: {served.reason}; load it first")
    return PoolUnavailableError(
        f"{served.name} is not ready: {served.reason or 'no worker has loaded it'}"
    )


def version_number(request: Request) -> int | None:
    """Return the version in a path, None without one. Raise ModelNotServedError."""
    text = request.path_params.get("version")
    return None if text is None else parse_version(text)


def parse_version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_VERSION):
        raise ModelNotServedError(f"no version {text[:80]!r}; expected a number")
    return int(text)
