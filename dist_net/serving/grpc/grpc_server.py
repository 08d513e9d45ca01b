"""The Open Inference Protocol over gRPC: a second door to the pool, beside HTTP.

Tokens, quotas and the memory of clients are those of HTTP. gRPC's own threads read and write the
sockets; every call runs on the gateway's event loop.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from dist_net.errors import AddressError, BadRequestError, DistNetError, KeyFileError
from dist_net.serving.gateway.client_ledger import ClientLedger, ClientShare, LoopShare
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.grpc.grpc_messages import DATA_TYPES, MESSAGES, PACKAGE
from dist_net.serving.grpc.grpc_translation import parsed, read_message, write_message
from dist_net.serving.http.exchange import (
    RequestExchange,
    description_of,
    parse_version,
    served_model,
)
from dist_net.serving.http.model_endpoints import (
    SERVER_METADATA,
    configuration_of,
    model_metadata,
    statistics_of,
)
from dist_net.serving.http.open_inference import infer
from dist_net.serving.http.replies import CODE_OF_STATUS, Refusals, code_of_error
from dist_net.serving.http.request_log import RequestLog
from dist_net.serving.http.settings import Credential, HttpSettings
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Status
from dist_net.wire.event_rates import EventRates

logger = logging.getLogger(__name__)

_STATUS_OF_CODE = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_NO_TOKEN = 401
_SERVICE = f"{PACKAGE}.GRPCInferenceService"
_STREAM = "ModelStreamInfer"
_OPEN = ("ServerLive", "ServerReady")  # as HTTP's probes
_MESSAGE_BYTES = 64 * 1024  # of a request besides its tensors
_CALLS = 1024  # at a time; those that wait for their client's others have not been read
_CALLS_OF_CLIENT = 16  # at a time; its others wait
_CALLS_PER_S, _CALLS_AT_ONCE = 300, 4  # that a client begins while others call
_CONNECTIONS = 128
_STREAMS = 64  # of a connection; gRPC refuses further ones, and counts those that were reset
_POLL_S = 0.25
_MAX_DETAILS = 1000  # characters; longer ones would exceed the client's limit of headers


Respond = Callable[[bytes, Any, Any], Awaitable[Any]]
"""Returns the response to a message, of an OpenRequest and gRPC's context of the call."""


class GrpcServer:
    """Listens from its creation, in a running event loop; ``address`` has the real port.

    ``settings`` are HTTP's, with this server's address. Raise AddressError and KeyFileError.
    """

    def __init__(
        self, gateway: Gateway, settings: HttpSettings, refusals: Refusals, ledger: ClientLedger
    ) -> None:
        self._gateway, self._settings = gateway, settings
        self._refusals, self._ledger = refusals, ledger
        self._health = health.HealthServicer()
        self._gates: WeakKeyDictionary[ClientShare, asyncio.Semaphore] = WeakKeyDictionary()
        self._turns: WeakKeyDictionary[ClientShare, asyncio.Lock] = WeakKeyDictionary()
        self._rates = EventRates()
        self._last_client: ClientShare | None = None
        self._changed_s = -inf  # when another client called
        max_bytes = min(settings.body_bytes, ledger.max_request_bytes) + _MESSAGE_BYTES
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=_CALLS,
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", settings.header_bytes),
                ("grpc.max_concurrent_streams", _STREAMS),
                ("grpc.max_allowed_incoming_connections", _CONNECTIONS),
                ("grpc.http2.max_requests_per_read", 1),
                ("grpc.so_reuseport", 0),
            ],
        )
        described: dict[str, Callable[[Any], dict[str, Any]]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": gateway.is_ready},
            "ServerMetadata": lambda _: SERVER_METADATA,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_configuration,
            "ModelStatistics": self._model_statistics,
        }
        calls = {name: _described(name, respond) for name, respond in described.items()}
        calls |= {"ModelInfer": self._inferred, _STREAM: self._streamed}
        # Each request is a stream, which is the same on the wire: so a message is read after the
        # token is checked. Messages arrive as bytes: gRPC would log a traceback for each that
        # cannot be parsed.
        kinds = {_STREAM: grpc.stream_stream_rpc_method_handler}
        handlers = {
            name: kinds.get(name, grpc.stream_unary_rpc_method_handler)(
                self._handler(name, respond)
            )
            for name, respond in calls.items()
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE, handlers)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.address = f"{settings.listen_address.host}:{self._bound_port()}"

    async def serve(self) -> None:
        """Respond until cancelled."""
        await self._server.start()
        try:
            while True:
                serving = health_pb2.HealthCheckResponse.ServingStatus
                is_ready = self._gateway.is_ready
                await self._health.set("", serving.SERVING if is_ready else serving.NOT_SERVING)
                await asyncio.sleep(_POLL_S)
        finally:
            await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and wait for the open ones."""
        await self._server.stop(grace_s)

    def _bound_port(self) -> int:
        settings = self._settings
        try:
            if settings.certificate and settings.private_key:
                pair = _read(settings.private_key), _read(settings.certificate)
                credentials = grpc.ssl_server_credentials([pair])
                return int(self._server.add_secure_port(settings.address, credentials))
            return int(self._server.add_insecure_port(settings.address))
        except RuntimeError as error:
            raise AddressError(
                f"cannot listen on {settings.address}: {error}; expected a free port of this host, "
                f"or 0 for any"
            ) from error

    def _handler(self, name: str, respond: Respond) -> Any:
        async def call(contents: AsyncIterator[bytes], context: Any) -> bytes:
            sender, headers = self._sender(context)
            response = b""
            share, log = sender.share(self._ledger), RequestLog(f"gRPC {name}", headers)
            held = ExitStack()
            if sender.role and name not in _OPEN and share is not self._last_client:
                self._last_client, self._changed_s = share, time.monotonic()
            context.set_trailing_metadata((("x-request-id", log.request_id),))
            try:
                await self._turn(share)
                if name in _OPEN:
                    response = (await respond(b"", None, context)).SerializeToString()
                elif name != _STREAM:
                    context.add_done_callback(lambda _: held.close())  # the response is written
                    read = partial(anext, contents, b"")
                    response = await self._answer(sender, read, respond, context, held)
                else:  # each in turn; an error ends only its request, except of a token
                    _require_token(sender)
                    async for content in contents:
                        await self._answer_in_stream(content, context)
                log.code = 200
            except DistNetError as error:
                log.code, reason = code_of_error(error), str(error)[:_MAX_DETAILS]
                self._refusals.note(log.code, f"gRPC {name}", reason, log.request_id)
                try:
                    await context.abort(_STATUS_OF_CODE[log.code], reason)
                except grpc.aio.InternalError:  # gRPC would log a traceback
                    logger.debug("client_gone call=%s", name)
            except grpc.aio.BaseError:
                logger.debug("client_gone call=%s", name)
            except asyncio.CancelledError:
                await self._turn(share)  # a stream counts for its connection until this returns
                raise
            finally:
                log.end(sender.name, is_logged=self._settings.access_log)
            return response

        return call

    async def _turn(self, share: ClientShare) -> None:
        """Wait for a client's turn, if another one has called in the last second.

        gRPC accepts one call at a time, whoever sends it: one client may not fill its queue.
        """
        if time.monotonic() > self._changed_s + 1:
            return
        limit = share.client, _CALLS_PER_S, _CALLS_AT_ONCE
        async with self._turns.setdefault(share, asyncio.Lock()):
            while wait_s := self._rates.wait_s(*limit, time.monotonic()):
                await asyncio.sleep(wait_s)

    async def _answer(
        self,
        sender: Credential,
        read: Callable[[], Awaitable[bytes]],
        respond: Respond,
        context: Any,
        held: ExitStack,
    ) -> bytes:
        """Return the response to a message within its client's limits; ``held`` holds its bytes."""
        _require_token(sender)
        share = sender.share(self._ledger)
        gate = self._gates.setdefault(share, asyncio.Semaphore(_CALLS_OF_CLIENT))
        await gate.acquire()
        held.callback(gate.release)
        opened = self._ledger.begin(share, time.monotonic())
        held.callback(opened.answered, 0)
        content = await read()
        opened.require(len(content))
        share.account.received_bytes += len(content)
        response: bytes = (await respond(content, opened, context)).SerializeToString()
        opened.answered(len(response))
        return response

    async def _answer_in_stream(self, content: bytes, context: Any) -> None:
        sender, _ = self._sender(context)
        with ExitStack() as held:
            try:
                answer = sender, partial(_ready, content), self._streamed, context, held
                response = await self._answer(*answer)
            except DistNetError as error:
                if code_of_error(error) == _NO_TOKEN:  # it was withdrawn
                    raise
                message = MESSAGES[f"{_STREAM}Response"](error_message=str(error)[:_MAX_DETAILS])
                response = message.SerializeToString()
            await context.write(response)

    def _sender(self, context: Any) -> tuple[Credential, dict[str, str]]:
        """Return the sender's credential and headers."""
        headers = {name: str(value) for name, value in context.invocation_metadata() or ()}
        host, _ = _peer(context)
        authorization = headers.get("authorization", "").encode()
        return self._settings.credential(host, authorization), headers

    def _model_ready(self, request: Any) -> dict[str, Any]:
        served = served_model(self._gateway, request.name)
        if request.version:
            self._described_model(request)
        return {"ready": served.is_ready}

    def _model_metadata(self, request: Any) -> dict[str, Any]:
        versions = served_model(self._gateway, request.name).versions
        return model_metadata(self._described_model(request), versions)

    def _described_model(self, request: Any) -> ModelDescription:
        version = parse_version(request.version) if request.version else None
        return description_of(self._gateway, request.name, version)

    def _model_configuration(self, request: Any) -> dict[str, Any]:
        model = self._described_model(request)
        found = configuration_of(model, self._gateway.max_batch_size)
        for kind, specs in (("input", model.inputs), ("output", model.outputs)):
            for each, spec in zip(found[kind], specs, strict=True):
                each["data_type"] = 1 + DATA_TYPES.index(spec.datatype)
        fields = MESSAGES["ModelConfig"].DESCRIPTOR.fields_by_name
        return {"config": {name: found[name] for name in fields if name in found}}

    def _model_statistics(self, request: Any) -> dict[str, Any]:
        model = self._described_model(request)
        counted = self._gateway.statistics(model.name).get(model.version)
        since_s = time.time() - time.monotonic()
        return {"model_stats": [statistics_of(model.name, model.version, counted, since_s)]}

    async def _inferred(self, content: bytes, opened: Any, context: Any) -> Any:
        """Return the response to a request. Raise DistNetError."""
        message = parsed("ModelInferRequest", content)
        share = opened.share
        has_token = self._settings.tokens is not None
        queue = share.client if has_token else "{}:{}".format(*_peer(context))
        exchange = RequestExchange(opened, queue, LoopShare(share.loop), is_private=False)
        version = parse_version(message.model_version) if message.model_version else None
        deadline_s = context.time_remaining()

        def read(model: Any) -> Any:
            requests, form = yield from read_message(message, model, version)
            for each in requests:
                each.timeout_s = min(each.timeout_s or inf, deadline_s or inf)
                each.timeout_s = None if each.timeout_s == inf else each.timeout_s
            return requests, form

        inference = await infer(exchange, self._gateway, (message.model_name, version), read)
        if (failure := inference.failure) is not None:
            if failure.status == Status.CANCELLED:
                raise asyncio.CancelledError
            raise BadRequestError(failure.reason, CODE_OF_STATUS[failure.status])
        return await exchange.in_slices(write_message(inference))

    async def _streamed(self, *arguments: Any) -> Any:
        return MESSAGES[f"{_STREAM}Response"](infer_response=await self._inferred(*arguments))


def _require_token(sender: Credential) -> None:
    if not sender.role:
        reason = "the token is missing or wrong; expected authorization: Bearer TOKEN"
        raise BadRequestError(reason, _NO_TOKEN)


def _described(name: str, describe: Callable[[Any], dict[str, Any]]) -> Respond:
    async def respond(content: bytes, *_: Any) -> Any:
        return MESSAGES[f"{name}Response"](**describe(parsed(f"{name}Request", content)))

    return respond


async def _ready(content: bytes) -> bytes:
    return content


def _peer(context: Any) -> tuple[str, str]:
    """Return the host and the port of the client's end of a connection."""
    _, _, address = unquote(context.peer()).partition(":")
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error}; expected a PEM file") from error
