"""What each client holds of the gateway: bytes until they are read, and requests in flight. Pure.

The one place of the limits per client: quotas, the memory for requests and answers, and the time of
the gateway's event loop.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakValueDictionary

from dist_net.errors import PoolUnavailableError, QuotaExceededError
from dist_net.serving.gateway.loop_turns import LoopShare, LoopTurns
from dist_net.wire.event_rates import EventRates

_KEPT_FREE = 8
_RETRY_AFTER_S = 1.0
_MAX_ACCOUNTS = 1024
_OTHERS = "others"
ANSWER_COPIES = 2  # of an answer in memory: as its workers sent it, and as it is written


class Quota(NamedTuple):
    """The maximum requests per second, in the mean over a second, and requests in flight."""

    rate: float = math.inf
    inflight: float = math.inf


NO_QUOTA = Quota()


@dataclass(slots=True, eq=False)
class Account:
    """What the clients with one token, key or address have sent and received since the start."""

    name: str
    quota: Quota
    requests: int = 0
    refused: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    in_flight: int = 0


@dataclass(slots=True, eq=False, weakref_slot=True)
class ClientShare:
    """A client's part of memory, of queues, and of the event loop's time.

    Connections with one token or key share it, and without them those of one address.
    """

    client: str
    account: Account
    loop: LoopShare
    held_bytes: int = 0


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request from its first byte until its answer is read. It holds ``size_bytes``."""

    share: ClientShare
    ledger: "ClientLedger" = field(repr=False)
    size_bytes: int = 0
    is_in_flight: bool = True

    def hold(self, size_bytes: int) -> bool:
        """Hold ``size_bytes`` from now on and return True; return False if there is no room."""
        more_bytes, share, ledger = size_bytes - self.size_bytes, self.share, self.ledger
        held_bytes, total_bytes = share.held_bytes + more_bytes, ledger.total_bytes + more_bytes
        if more_bytes > 0 and held_bytes > ledger.limit_bytes - total_bytes:
            is_only = share.held_bytes == self.size_bytes
            if not is_only or total_bytes > ledger.max_request_bytes:
                return False
        self.size_bytes = size_bytes
        share.held_bytes, ledger.total_bytes = held_bytes, total_bytes
        return True

    def require(self, size_bytes: int) -> None:
        """Hold ``size_bytes`` from now on; raise PoolUnavailableError if there is no room."""
        if not self.hold(size_bytes):
            raise PoolUnavailableError(
                f"unanswered requests and unread answers would hold too much of "
                f"{self.ledger.limit_bytes:,} bytes (--queue-mib) with {size_bytes:,} for this "
                f"request; send fewer or smaller requests, read the answers, or retry in "
                f"{_RETRY_AFTER_S:.0f} s",
                _RETRY_AFTER_S,
            )

    def require_answer(self, answer_bytes: int) -> None:
        """Also hold an answer; raise PoolUnavailableError if there is no room."""
        self.require(self.size_bytes + ANSWER_COPIES * answer_bytes)

    def answered(self, answer_bytes: int) -> None:
        """Count an answer that is sent, and hold it instead of the request.

        0 bytes: the answer was read, or the client has gone.
        """
        self.share.account.sent_bytes += answer_bytes
        self.share.account.in_flight -= self.is_in_flight
        self.is_in_flight = False
        self.hold(ANSWER_COPIES * answer_bytes)


class ClientLedger:
    """Limits the clients to ``limit_bytes`` together.

    A client may hold no more than it leaves free for others (dynamic thresholds, Choudhury and
    Hahne 1998), so that many greedy clients never exhaust the memory. But its only request may take
    all but an eighth. ``quota`` limits clients that have no quota by name.
    """

    def __init__(self, limit_bytes: int, quota: Quota = NO_QUOTA) -> None:
        self.limit_bytes = limit_bytes
        self.max_request_bytes = limit_bytes - limit_bytes // _KEPT_FREE
        self.total_bytes = 0
        self.accounts: dict[str, Account] = {}
        self.turns = LoopTurns()
        self._shares: dict[str, ClientShare] = {}
        self._addresses: WeakValueDictionary[str, ClientShare] = WeakValueDictionary()
        self._quota = quota
        self._rates = EventRates()

    def share_of(self, name: str, quota: Quota = NO_QUOTA) -> ClientShare:
        """Return the share of the holders of a token or key."""
        quota = self._quota if quota == NO_QUOTA else quota
        share = self._shares.get(name)
        if share is None or share.account.quota != quota:
            share = self._shares[name] = self._new_share(name, name, quota)
        return share

    def share_of_address(self, host: str, kind: str = "") -> ClientShare:
        """Return the share of the connections of an address without token and key, of a kind."""
        share = self._addresses.get(kind + host)
        if share is None:
            share = self._new_share(kind + host, host, self._quota)
            self._addresses[kind + host] = share
        return share

    def begin(self, share: ClientShare, now: float) -> OpenRequest:
        """Open a request; raise QuotaExceededError beyond the client's quota."""
        account = share.account
        (rate, inflight), name, wait_s = account.quota, account.name, 0.0
        if account.in_flight >= inflight:
            limit = f"{inflight:g} requests in flight"
        elif rate < math.inf and (wait_s := self._rates.wait_s(name, rate, max(1.0, rate), now)):
            limit = f"{rate:g} requests per second"
        else:
            account.requests += 1
            account.in_flight += 1
            return OpenRequest(share, self)
        account.refused += 1
        message = f"{name} exceeds its quota of {limit}; send fewer requests"
        raise QuotaExceededError(message, wait_s)

    def _new_share(self, client: str, name: str, quota: Quota) -> ClientShare:
        """Return a client's share. Beyond ``_MAX_ACCOUNTS`` names, the others have one account."""
        if name not in self.accounts and len(self.accounts) >= _MAX_ACCOUNTS:
            name = _OTHERS
        account = self.accounts.setdefault(name, Account(name, quota))
        account.quota = quota
        return ClientShare(client, account, LoopShare(self.turns.all))
