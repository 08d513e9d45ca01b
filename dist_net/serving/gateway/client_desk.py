"""The gateway's interface for ZeroMQ clients: messages to requests, results to answers."""

import asyncio
import json
import math
import re
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

from dist_net.errors import PoolUnavailableError
from dist_net.serving.gateway.client_ledger import (
    PEER_S,
    ClientLedger,
    ClientShare,
    OpenRequest,
    TurnBudget,
)
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.description import (
    DIGEST_BYTES,
    KNOWN_BYTES,
    classes_to_json,
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
READ_CHECK_S = 0.02
READS_WITHIN_S = 60.0
ANSWER_BYTES = 256  # of an answer without payload, about
SMALL_BYTES = 1 << 16  # what a request holds is corrected at its answer only above this


@dataclass(slots=True, eq=False)
class _Peer:
    """A connected client: its open requests by number, and what it holds by unread answers.

    It has read ``size`` bytes of the ledger when it has read ``end`` bytes of its connection:
    ``unread``, oldest first. ``sent_bytes``: the same for the answers since the last check.
    """

    share: ClientShare
    futures: dict[int, asyncio.Future[Result]] = field(default_factory=dict)
    unread: deque[tuple[int, int]] = field(default_factory=deque)
    sent_bytes: int = 0
    read_s: float = -math.inf  # when it had last read something, or had nothing to read


class ClientDesk:
    """Answers clients at ``socket``; ``incarnation`` names this start of the gateway.

    With ``may_rule=False``, clients may not reload and unload models. Keys, if the socket has them,
    are checked before. ``ledger`` counts what clients hold until they have read their answers.
    """

    def __init__(
        self,
        gateway: Gateway,
        socket: ServerSocket,
        incarnation: bytes,
        ledger: ClientLedger,
        may_rule: bool = True,
        turn: TurnBudget | None = None,
    ) -> None:
        self._gateway = gateway
        self._may_rule = may_rule
        self._socket = socket
        self._incarnation = incarnation
        self._ledger = ledger
        self._turn = turn or TurnBudget()
        self._peers: dict[bytes, _Peer] = {}  # that have open requests or unread answers
        self._will_receive = False
        self._will_check = False
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
        began_s = self._turn.now()
        limit = 0 if self._turn.is_spent else MESSAGES_A_TURN
        try:
            for node, message in self._socket.waiting(limit):
                try:
                    self._handle(node, message)
                except Exception:
                    self._socket.answer_failure(node, message)
                if self._turn.now() > began_s + PEER_S:
                    break
        finally:  # or the remaining messages would never be read
            self._turn.spend(began_s)
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
                peer = self._peers.get(node)
                future = None if peer is None else peer.futures.pop(request_id, None)
                if future is not None:
                    future.cancel()
            case Describe():
                self._describe(node, message)
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

    def _peer(self, node: bytes) -> _Peer:
        peer = self._peers.get(node)
        if peer is None:
            key, host = self._socket.sender(node)
            ledger = self._ledger
            share = ledger.share_of(key) if key else ledger.new_share(host, node.hex())
            peer = self._peers[node] = _Peer(share)
        return peer

    def _look_for_clients(self) -> None:
        """Drop the requests of clients that are gone, which ZeroMQ reports on a send."""
        self._timer = self._loop.call_later(LOOK_S, self._look_for_clients)
        for node, peer in list(self._peers.items()):
            if peer.futures and not self._socket.send(node, self._pong(node)):
                for future in list(peer.futures.values()):
                    future.cancel()
                peer.futures.clear()
            if not (peer.futures or peer.unread or peer.sent_bytes):
                del self._peers[node]
        self._receive_soon()

    def _describe(self, node: bytes, request: Describe) -> None:
        models, peer = self._gateway.models(), self._peer(node)
        payloads = [json.dumps(list(models)).encode()]
        if request.model in models:
            payloads += summary_to_json(models[request.model], self._gateway.max_batch_size)
        opened = self._opened(node, peer, request.request_id, sum(map(len, payloads)))
        if opened is not None:
            opened.answered(opened.size_bytes)
            self._deliver(node, peer, Description(request.request_id, tuple(payloads)), opened)

    def _opened(
        self, node: bytes, peer: _Peer, request_id: int, size_bytes: int
    ) -> OpenRequest | None:
        """Open a request that holds so many bytes; refuse it and return None without room."""
        opened = None
        try:
            opened = self._ledger.begin(peer.share, self._turn.now())
            if not opened.hold(size_bytes):
                self._release_read()
                opened.require(size_bytes)
            return opened
        except PoolUnavailableError as error:
            if opened is not None:
                opened.close()
            reason, retry_after_s = str(error), error.retry_after_s
            result = Result(Status.UNAVAILABLE, reason=reason, retry_after_s=retry_after_s)
            self._send(node, _answer(request_id, result, ()))
            return None

    def _ask(self, node: bytes, ask: Ask) -> None:
        known = bytes(ask.payloads[1]) if len(ask.payloads) == 2 else b""
        is_right = len(ask.payloads) == 1 or len(known) == KNOWN_BYTES
        if not is_right or (ask.version and not VERSION.fullmatch(ask.version)):
            self._refuse(
                node,
                ask.request_id,
                f"the request has {len(ask.payloads)} payloads and version {ask.version[:20]!r}; "
                f"expected one payload, or {KNOWN_BYTES} bytes of digests as a second one; and a "
                f"whole number or nothing",
            )
            return
        version = int(ask.version) if ask.version else None
        payload = ask.payloads[0]
        model = self._gateway.description(ask.model, version)
        if known and model and not ask.is_image and model.interface_digest != known[:DIGEST_BYTES]:
            inputs = ", ".join(f"{of.name} {of.datatype} {of.shape}" for of in model.inputs)
            self._refuse(
                node,
                ask.request_id,
                f"the input of {ask.model} is now {inputs}, unlike when the client requested its "
                f"description; request the description again",
            )
            return
        rows = model.rows_in(len(payload)) if model and not ask.is_image else 1
        answer_bytes = model.answer_bytes(rows) if model else 0
        # An answer is in memory twice while it is sent.
        held_bytes = len(payload) + 2 * answer_bytes + ANSWER_BYTES
        peer = self._peer(node)
        if ask.request_id in peer.futures:
            return  # sent again, though its connection was not lost
        opened = self._opened(node, peer, ask.request_id, held_bytes)
        if opened is None:
            return
        peer.share.account.received_bytes += len(payload)
        request = InferenceRequest(
            model=ask.model,
            payload=payload,
            rows=rows,
            is_image=ask.is_image,
            version=version,
            timeout_s=ask.timeout_s or None,
            client=peer.share.client,
        )
        future = peer.futures[ask.request_id] = self._gateway.infer(request)
        classes = ask.model, known[DIGEST_BYTES:]
        future.add_done_callback(partial(self._answered, node, ask.request_id, opened, classes))

    def _answered(
        self,
        node: bytes,
        request_id: int,
        opened: OpenRequest,
        classes: tuple[str, bytes],
        future: asyncio.Future[Result],
    ) -> None:
        """Answer a request; ``classes``: the model, and the digest of those the client knows."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.futures.pop(request_id, None)
        if future.cancelled() or peer is None:
            opened.close()
            return
        result = future.result()
        payloads: Payloads = (result.payload,) if result.status is Status.OK else ()
        if payloads and classes[1]:
            described = self._gateway.description(classes[0], result.version)
            if described is None or described.classes_digest != classes[1]:
                payloads += classes_to_json(result.labels, result.unknown_below)
        answer_bytes = sum(map(len, payloads)) + ANSWER_BYTES
        opened.answered(answer_bytes)
        if opened.size_bytes > SMALL_BYTES:
            opened.hold(answer_bytes)
        self._deliver(node, peer, _answer(request_id, result, payloads), opened)

    def _refuse(self, node: bytes, request_id: int, reason: str) -> None:
        result = Result(Status.BAD_INPUT, reason=reason)
        self._send(node, _answer(request_id, result, ()))

    def _deliver(self, node: bytes, peer: _Peer, message: Message, opened: OpenRequest) -> None:
        """Send an answer, whose bytes are held until the client has read it."""
        if not self._send(node, message):
            opened.close()
            return
        peer.sent_bytes += opened.leave()
        if not self._will_check:
            self._will_check = True
            self._loop.call_later(READ_CHECK_S, self._check_reads)

    def _check_reads(self) -> None:
        self._will_check = False
        if not self._is_closed and self._release_read():
            self._will_check = True
            self._loop.call_later(READ_CHECK_S, self._check_reads)

    def _release_read(self) -> bool:
        """Release the answers that were read; return whether any is unread."""
        now, is_any_unread = self._turn.now(), False
        for node, peer in self._peers.items():
            if not (peer.sent_bytes or peer.unread):
                continue
            if peer.sent_bytes:
                peer.read_s = peer.read_s if peer.unread else now
                peer.unread.append((self._socket.sent_bytes(node), peer.sent_bytes))
                peer.sent_bytes = 0
            read_bytes = self._socket.read_bytes(node)
            while peer.unread and peer.unread[0][0] <= read_bytes:
                self._ledger.release(peer.share, peer.unread.popleft()[1])
                peer.read_s = now
            is_any_unread |= bool(peer.unread)
            if peer.unread and now - peer.read_s > READS_WITHIN_S:
                self._socket.drop(node, f"it has read no answer for {READS_WITHIN_S:g} s")
        return is_any_unread

    def _send(self, node: bytes, message: Message) -> bool:
        """Send a message, unless the client has gone or its queue is full."""
        if self._is_closed:
            return False
        self._receive_soon()
        return self._socket.send(node, message)


def _answer(request_id: int, result: Result, payloads: Payloads) -> Answer:
    return Answer(
        request_id,
        int(result.status),
        str(result.version),
        result.reason,
        result.retry_after_s,
        result.queue_s,
        result.compute_s,
        payloads,
    )


def _reloaded(request_id: int, result: Result) -> Reloaded:
    return Reloaded(request_id, str(result.version), result.reason)
