"""What each client holds of the gateway: bytes until they are read, and requests in flight. Pure.

The one place of the limits per client: quotas, and the memory for requests and answers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from dist_net.errors import PoolUnavailableError, QuotaExceededError
from dist_net.wire.event_rates import EventRates

_KEPT_FREE = 8
_RETRY_AFTER_S = 1.0
_MAX_NAMES = 1024
_OTHERS = "others"


class Quota(NamedTuple):
    """The maximum requests per second, in the mean over a second, and requests in flight."""

    rate: float = math.inf
    inflight: float = math.inf


NO_QUOTA = Quota()


class Caller(NamedTuple):
    """The sender of a request.

    ``name``: of its token or key, or its address; quotas and metrics are by name. ``share``: its
    part of the memory and of the queues, the name or, without token and key, its connection.
    """

    name: str
    share: str
    quota: Quota = NO_QUOTA


@dataclass(slots=True)
class Usage:
    """What the clients of one name have sent and received since the start."""

    requests: int = 0
    refused: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request from its first byte until its answer is read. It holds ``size_bytes``."""

    caller: Caller
    ledger: ClientLedger = field(repr=False)
    size_bytes: int = 0
    is_in_flight: bool = True

    def hold(self, size_bytes: int) -> bool:
        """Hold so many bytes from now on, and return True; or return False without room."""
        return self.ledger.hold(self, size_bytes)

    def require(self, size_bytes: int) -> None:
        """Hold so many bytes from now on; raise PoolUnavailableError without room."""
        if not self.hold(size_bytes):
            raise self.ledger.no_room(size_bytes)

    def received(self, request_bytes: int) -> None:
        """Count a request's body."""
        self.ledger.usage_of(self.caller.name).received_bytes += request_bytes

    def answered(self, answer_bytes: int) -> None:
        """Count an answer that is sent: the request is not in flight any more."""
        self.ledger.usage_of(self.caller.name).sent_bytes += answer_bytes
        self.ledger.land(self)

    def close(self) -> None:
        """Release all bytes: the answer was read, or the client has gone."""
        self.hold(0)
        self.ledger.land(self)


class ClientLedger:
    """Limits the clients to ``limit_bytes`` together.

    A client may hold no more than it leaves free for others (dynamic thresholds, Choudhury and
    Hahne 1998), so that many greedy clients never exhaust the memory. But its only request may take
    all but an eighth. ``quota`` is that of clients without one of their own.
    """

    def __init__(self, limit_bytes: int, quota: Quota = NO_QUOTA) -> None:
        self.limit_bytes = limit_bytes
        self.total_bytes = 0
        self.usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._quota = quota
        self._share_bytes: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._rates = EventRates()

    def begin(self, caller: Caller, now: float) -> OpenRequest:
        """Open a request; raise QuotaExceededError beyond the caller's quota."""
        quota = self._quota if caller.quota == NO_QUOTA else caller.quota
        usage = self.usage_of(caller.name)
        limit, wait_s = "", 0.0
        if self._in_flight[caller.name] >= quota.inflight:
            limit = f"{quota.inflight:g} requests in flight"
        elif quota.rate < math.inf:
            wait_s = self._rates.wait_s(caller.name, quota.rate, max(1.0, quota.rate), now)
            limit = f"{quota.rate:g} requests per second" if wait_s else ""
        if limit:
            usage.refused += 1
            raise QuotaExceededError(
                f"{caller.name} exceeds its quota of {limit}; send fewer requests", wait_s
            )
        usage.requests += 1
        self._in_flight[caller.name] += 1
        return OpenRequest(caller, self)

    def hold(self, request: OpenRequest, size_bytes: int) -> bool:
        """Change the bytes that a request holds; return False without room for more."""
        more_bytes = size_bytes - request.size_bytes
        share, total_bytes = request.caller.share, self.total_bytes + more_bytes
        share_bytes = self._share_bytes[share] + more_bytes
        is_only = share_bytes == size_bytes and total_bytes <= self.max_request_bytes
        if more_bytes > 0 and not is_only and share_bytes > self.limit_bytes - total_bytes:
            return False
        request.size_bytes, self.total_bytes = size_bytes, total_bytes
        self._share_bytes[share] = share_bytes
        if not share_bytes:
            del self._share_bytes[share]
        return True

    @property
    def max_request_bytes(self) -> int:
        """The largest request and answer that fit, without others."""
        return self.limit_bytes - self.limit_bytes // _KEPT_FREE

    def no_room(self, size_bytes: int) -> PoolUnavailableError:
        """Return the error for a request that would hold so many bytes."""
        return PoolUnavailableError(
            f"unanswered requests and unread answers would hold too much of {self.limit_bytes:,} "
            f"bytes (--queue-mib) with {size_bytes:,} for this request; send fewer or smaller "
            f"requests, read the answers, or retry in {_RETRY_AFTER_S:.0f} s",
            _RETRY_AFTER_S,
        )

    def land(self, request: OpenRequest) -> None:
        """Note that a request is not in flight any more."""
        if request.is_in_flight:
            request.is_in_flight, name = False, request.caller.name
            self._in_flight[name] -= 1
            if not self._in_flight[name]:
                del self._in_flight[name]

    def usage_of(self, name: str) -> Usage:
        """Return the usage that counts a client; addresses are endless, so many share one."""
        return self.usage[name if name in self.usage or len(self.usage) < _MAX_NAMES else _OTHERS]
