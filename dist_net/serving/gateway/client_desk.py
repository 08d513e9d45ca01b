"""The gateway's interface for ZeroMQ clients: messages to requests, results to answers."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from hashlib import blake2b

from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.description import (
    DIGEST_BYTES,
    KNOWN_BYTES,
    classes_to_json,
    digest_of_classes,
    digest_of_interface,
    summary_to_json,
)
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from dist_net.wire.fields import Payloads
from dist_net.wire.messages import Message, Refuse, StatusReport, StatusRequest
from dist_net.wire.serving_messages import (
    Answer,
    Ask,
    Cancel,
    Describe,
    Description,
    Ping,
    Pong,
    Reload,
    Reloaded,
    Unload,
)
from dist_net.wire.transport import ServerSocket

VERSION = re.compile("[0-9]{0,18}")
MESSAGES_A_TURN = 16  # then other callbacks of the event loop run
LOOK_S = 1.0


class ClientDesk:
    """Answers clients at ``socket``; ``incarnation`` names this start of the gateway.

    With ``may_rule=False``, clients may not reload and unload models. Keys, if the socket has them,
    are checked before.
    """

    def __init__(
        self, gateway: Gateway, socket: ServerSocket, incarnation: bytes, may_rule: bool = True
    ) -> None:
        self._gateway = gateway
        self._may_rule = may_rule
        self._socket = socket
        self._incarnation = incarnation
        self._futures: dict[tuple[bytes, int], asyncio.Future[Result]] = {}
        self._will_receive = False
        self._is_closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to serve clients on this event loop."""
        self._loop = loop
        self._loop.add_reader(self._socket.fileno(), self._receive)
        self._receive_soon()
        self._look_for_clients()

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._timer.cancel()
        self._is_closed = True  # callbacks that are still queued must not touch the socket

    def _receive(self) -> None:
        if self._is_closed:
            return
        self._will_receive = False
        try:
            for node, message in self._socket.waiting(MESSAGES_A_TURN):
                try:
                    self._handle(node, message)
                except Exception:
                    self._socket.answer_failure(node, message)
        finally:  # or the remaining messages would never be read
            if self._socket.has_message():
                self._receive_soon()

    def _receive_soon(self) -> None:
        """Receive the rest in the next turn; a send may have consumed the descriptor's event."""
        if not self._will_receive:
            self._will_receive = True
            self._loop.call_soon(self._receive)

    def _handle(self, node: bytes, message: Message) -> None:
        match message:
            case Ask():
                self._ask(node, message)
            case Cancel(request_id):
                future = self._futures.pop((node, request_id), None)
                if future is not None:
                    future.cancel()
            case Describe(request_id, model):
                models = self._gateway.models()
                payloads = [json.dumps(list(models)).encode()]
                if model in models:
                    payloads += summary_to_json(models[model], self._gateway.max_batch_size)
                self._send(node, Description(request_id, tuple(payloads)))
            case Ping():
                self._send(node, self._pong(node))
            case Reload(request_id) | Unload(request_id) if not self._may_rule:
                reason = (
                    "without a key, a client may not reload and unload models of a pool that has "
                    "a --token-file; expected the key of an operator (--keys)"
                )
                self._send(node, Reloaded(request_id, "", reason))
            case Reload(request_id, model):
                self._gateway.reload(model).add_done_callback(
                    lambda ended: self._send(node, _reloaded(request_id, ended.result()))
                )
            case Unload(request_id, model):
                self._send(node, _reloaded(request_id, self._gateway.unload(model)))
            case StatusRequest():
                self._send(node, StatusReport(json.dumps(self._gateway.status())))
            case _:
                reason = f"{type(message).__name__} is not for the clients' address of a gateway"
                self._send(node, Refuse(reason, may_rejoin=False))

    def _pong(self, node: bytes) -> Pong:
        name = blake2b(node, key=self._incarnation, digest_size=16)  # a node's id is a secret
        return Pong(name.hexdigest(), self._gateway.is_ready)

    def _look_for_clients(self) -> None:
        """Drop the requests of clients that are gone, which ZeroMQ reports on a send."""
        self._timer = self._loop.call_later(LOOK_S, self._look_for_clients)
        for node in dict.fromkeys(node for node, _ in self._futures):
            if not self._socket.send(node, self._pong(node)):
                for key in [key for key in self._futures if key[0] == node]:
                    self._futures.pop(key).cancel()
        self._receive_soon()

    def _ask(self, node: bytes, ask: Ask) -> None:
        known = bytes(ask.payloads[1]) if len(ask.payloads) == 2 else b""
        is_right = len(ask.payloads) == 1 or len(known) == KNOWN_BYTES
        if not is_right or not VERSION.fullmatch(ask.version):
            reason = (
                f"the request has {len(ask.payloads)} payloads and version {ask.version[:20]!r}; "
                f"expected one payload, or {KNOWN_BYTES} bytes of digests as a second one; and a "
                f"whole number or nothing"
            )
            self._answer(node, ask.request_id, Result(Status.BAD_INPUT, reason=reason))
            return
        version = int(ask.version) if ask.version else None
        payload = ask.payloads[0]
        described = None if ask.is_image else self._gateway.description(ask.model, version)
        if (
            known
            and described is not None
            and known[:DIGEST_BYTES] != digest_of_interface(described.interface)
        ):
            inputs = ", ".join(f"{of.name} {of.datatype} {of.shape}" for of in described.inputs)
            reason = (
                f"the input of {ask.model} is now {inputs}, unlike when the client requested its "
                f"description; request the description again"
            )
            self._answer(node, ask.request_id, Result(Status.BAD_INPUT, reason=reason))
            return
        request = InferenceRequest(
            model=ask.model,
            payload=payload,
            rows=described.rows_in(len(payload)) if described else 1,
            is_image=ask.is_image,
            version=version,
            timeout_s=ask.timeout_s or None,
        )
        key = node, ask.request_id
        future = self._futures[key] = self._gateway.infer(request)
        future.add_done_callback(partial(self._answered, key, known[DIGEST_BYTES:]))

    def _answered(
        self, key: tuple[bytes, int], known_classes: bytes, future: asyncio.Future[Result]
    ) -> None:
        self._futures.pop(key, None)
        if not future.cancelled():
            self._answer(*key, future.result(), known_classes)

    def _answer(
        self, node: bytes, request_id: int, result: Result, known_classes: bytes = b""
    ) -> None:
        payloads: Payloads = (result.payload,) if result.status is Status.OK else ()
        labels, unknown_below = result.labels, result.unknown_below
        if payloads and known_classes not in (b"", digest_of_classes(labels, unknown_below)):
            payloads = (result.payload, *classes_to_json(labels, unknown_below))
        self._send(
            node,
            Answer(
                request_id,
                int(result.status),
                str(result.version),
                result.reason,
                result.retry_after_s,
                result.queue_s,
                result.compute_s,
                payloads,
            ),
        )

    def _send(self, node: bytes, message: Message) -> None:
        """Send a message, unless the client has gone or its queue is full."""
        if not self._is_closed:
            self._socket.send(node, message)
            self._receive_soon()


def _reloaded(request_id: int, result: Result) -> Reloaded:
    return Reloaded(request_id, str(result.version), result.reason)
