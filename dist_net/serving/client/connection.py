"""A client's connection to the gateway: sends requests, returns replies or raises errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from dist_net.errors import (
    BadRequestError,
    DistNetError,
    ModelNotServedError,
    NoAnswerError,
    PoolUnavailableError,
    ProtocolError,
    RequestCancelledError,
    RequestExpiredError,
    RequestFailedError,
)
from dist_net.serving.client.conversation import (
    SILENCE_S,
    ClientRequest,
    Conversation,
    Exchange,
    GatewayReply,
)
from dist_net.serving.pool.requests import Status
from dist_net.wire.messages import Refuse
from dist_net.wire.security import PeerKeys
from dist_net.wire.serving_messages import Answer, Description, Reloaded
from dist_net.wire.transport import ClientSocket

MAX_OPEN = 256
"""The maximum number of open requests; a further request waits."""

HIGH_WATER_MARK = 4 * MAX_OPEN  # each may be sent, sent again and cancelled, with room to spare
POLL_S = SILENCE_S / 2

ERRORS: dict[int, Callable[[str], DistNetError]] = {
    Status.BAD_INPUT: BadRequestError,
    Status.NOT_FOUND: ModelNotServedError,
    Status.EXPIRED: RequestExpiredError,
    Status.FAILED: RequestFailedError,
    Status.CANCELLED: RequestCancelledError,
}

ReplyKind = TypeVar("ReplyKind", Answer, Description, Reloaded)


class GatewayConnection:
    """Belongs to one thread. Reconnects after a loss.

    Raise AddressError, and InsecureAddressError for an address beyond loopback without keys.
    """

    def __init__(self, address: str, keys: PeerKeys | None) -> None:
        self._socket = ClientSocket(address, keys, high_water_mark=HIGH_WATER_MARK)
        self._address = address
        self._conversation = Conversation()
        self._socket.send(self._conversation.ping(time.monotonic()))

    def close(self) -> None:
        """Cancel open requests and close, after a short wait for messages to leave."""
        try:
            for message in self._conversation.cancel_all():
                self._socket.send(message)
        except NoAnswerError:  # the gateway is gone
            pass
        finally:
            self._socket.close()

    def next_id(self) -> int:
        return self._conversation.next_id()

    def send(self, request: ClientRequest, timeout_s: float) -> Exchange:
        """Send a request; wait only while ``MAX_OPEN`` others have no reply.

        Raise NoAnswerError when the queue of messages to the gateway is full.
        """
        while len(self._conversation) >= MAX_OPEN:
            self._receive(POLL_S)
        exchange = self._conversation.open(request, timeout_s, time.monotonic())
        self._socket.send(request)
        return exchange

    def cancel(self, exchange: Exchange) -> None:
        """Cancel a request, unless it has its reply."""
        if exchange.reply is None:
            self._socket.send(self._conversation.cancel(exchange))

    def reply_to(self, exchange: Exchange, kind: type[ReplyKind]) -> ReplyKind:
        """Wait for the reply until the request's deadline.

        Raise the error of an ``Answer`` that is not OK; RequestExpiredError, or NoAnswerError if
        the gateway is silent; ProtocolError for a reply of another kind.
        """
        while exchange.reply is None:
            self._receive(min(POLL_S, exchange.deadline - time.monotonic()))
        reply = exchange.reply
        if isinstance(reply, Answer) and reply.status != Status.OK:
            raise self._error(reply, exchange)
        if not isinstance(reply, kind):
            raise unexpected(reply)
        return reply

    def _receive(self, timeout_s: float) -> None:
        """Process one message, or note that none arrived in time."""
        message = self._socket.receive(timeout_s)
        now = time.monotonic()
        if message is None:
            for each in self._conversation.nothing_came(now):
                self._socket.send(each)
        elif isinstance(message, Refuse):
            raise ProtocolError(f"the gateway at {self._address} refused: {message.reason}")
        else:
            for request in self._conversation.heard(message, now):
                self._socket.send(request)

    def _error(self, answer: Answer, exchange: Exchange) -> DistNetError:
        if answer.status == Status.UNAVAILABLE:
            return PoolUnavailableError(answer.reason, answer.retry_after_s)
        if answer.status == Status.EXPIRED and not answer.reason:  # given up on this side
            if not self._conversation.was_heard_since(time.monotonic() - 2 * SILENCE_S):
                return self._socket.no_answer(exchange.timeout_s)
            return RequestExpiredError(
                f"no answer within {exchange.timeout_s:g} s, though the gateway is there: "
                f"allow more time, or add workers"
            )
        if answer.status not in ERRORS:
            return unexpected(answer)
        return ERRORS[answer.status](answer.reason or "cancelled: it has no result")


def unexpected(reply: GatewayReply) -> ProtocolError:
    """Return the error for a reply that does not fit its request."""
    return ProtocolError(
        f"the gateway's reply does not fit the request: {str(reply)[:200]}; install the same "
        f"release of dist-net on both hosts"
    )
