"""A client's open requests and their replies. No I/O; time is passed in.

    open ──▶ request sent ──▶ reply                     heard
                         ├──▶ timeout, Cancel sent      check
                         └──▶ sent again                heard (Pong of another gateway)

A client pings a silent gateway every ``SILENCE_S``. The gateway replies with its own name and the
connection's. If that changes, the gateway or the connection is new, and open requests are lost.
"""

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, Self

from dist_net.serving.pool.requests import Status
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

SILENCE_S = 0.5

ClientRequest = Ask | Describe | Reload | Unload
GatewayReply = Answer | Description | Reloaded


class Deadline(NamedTuple):
    """The end of a call that may take ``timeout_s``."""

    timeout_s: float
    at_s: float

    @classmethod
    def after(cls, timeout_s: float, now: float) -> Self:
        return cls(timeout_s, now + timeout_s)


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and its reply, None until it arrives."""

    request: ClientRequest
    deadline: Deadline
    reply: GatewayReply | None = None


class Conversation:
    """Belongs to one client, which numbers its requests from ``first_id`` on.

    If that is random, an answer to another client, or to a former one, answers none of them.
    """

    def __init__(self, first_id: int = 1) -> None:
        self._open: dict[int, Exchange] = {}
        self.next_id = count(first_id).__next__
        self._gateway = ""
        self._pings_sent = 0
        self._pinged = 0.0
        self.heard_s = 0.0  # when anything has come from the gateway last

    def __len__(self) -> int:
        """Return the number of open requests."""
        return len(self._open)

    def ping(self, now: float) -> Ping:
        """Return the first message of a conversation, which requests the gateway's name."""
        self._pinged = now
        self._pings_sent += 1
        return Ping()

    def open(self, request: ClientRequest, deadline: Deadline) -> Exchange:
        """Record that a request is sent; return the exchange that will hold its reply."""
        exchange = self._open[request.request_id] = Exchange(request, deadline)
        return exchange

    def heard(self, message: object, now: float) -> list[ClientRequest]:
        """Process a message; return requests to repeat. Ignore replies to requests not open."""
        self.heard_s = now
        if isinstance(message, Answer | Description | Reloaded):
            exchange = self._open.pop(message.request_id, None)
            if exchange is not None:
                exchange.reply = message
        elif isinstance(message, Pong) and message.gateway != self._gateway:
            # After a single ping, the gateway that replies has all requests.
            is_restarted = self._gateway != "" or self._pings_sent > 1
            self._gateway = message.gateway
            if is_restarted:
                return [_again(exchange, now) for exchange in self._open.values()]
        return []

    def check(self, now: float) -> list[Ping | Cancel]:
        """Expire overdue requests once all arrived replies are received; return what to send."""
        overdue = [each for each in self._open.values() if each.deadline.at_s <= now]
        messages: list[Ping | Cancel] = [self.cancel(each, Status.EXPIRED) for each in overdue]
        if self._open and now - max(self.heard_s, self._pinged) >= SILENCE_S:
            messages.append(self.ping(now))
        return messages

    def cancel(self, exchange: Exchange, status: Status = Status.CANCELLED) -> Cancel:
        """End an open request with a local reply, which has no version."""
        request_id = exchange.request.request_id
        del self._open[request_id]
        exchange.reply = Answer(request_id, status, "", "", 0.0, 0.0, 0.0, ())
        return Cancel(request_id)

    def cancel_all(self) -> list[Cancel]:
        return [self.cancel(exchange) for exchange in list(self._open.values())]


def _again(exchange: Exchange, now: float) -> ClientRequest:
    """The request, with the time that it has left."""
    request = exchange.request
    if isinstance(request, Ask):
        return request._replace(timeout_s=max(exchange.deadline.at_s - now, 1e-3))
    return request
