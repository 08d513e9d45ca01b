"""What clients may hold of the gateway, and how often they may ask."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.errors import PoolUnavailableError, QuotaExceededError
from dist_net.serving.gateway.client_ledger import ClientLedger, OpenRequest, Quota

LIMIT = 1000


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(0, LIMIT)), max_size=200)
)
def test_all_clients_together_hold_no_more_than_the_limit_and_what_is_released_is_free(
    steps: Sequence[tuple[int, int, int]],
) -> None:
    ledger = ClientLedger(LIMIT)
    opened: dict[tuple[int, int], OpenRequest] = {}
    for client, request, size in steps:
        one = opened.setdefault((client, request), ledger.begin(ledger.share_of(f"{client}"), 0.0))
        one.hold(size)
        assert ledger.total_bytes == sum(each.size_bytes for each in opened.values()) <= LIMIT
    for each in opened.values():
        each.answered(0)
    assert ledger.total_bytes == 0
    assert ledger.begin(ledger.share_of("late"), 0.0).hold(ledger.max_request_bytes)


@given(st.integers(1, 100), st.integers(1, 300))
def test_however_many_clients_take_all_they_can_a_small_request_of_another_has_room(
    clients: int, size: int
) -> None:
    ledger = ClientLedger(1_000_000)
    for client in range(clients):
        while ledger.begin(ledger.share_of(f"greedy {client}"), 0.0).hold(size * 30):
            pass
    assert ledger.begin(ledger.share_of("modest"), 0.0).hold(size * 7)


def test_a_request_without_room_is_refused_with_what_to_do() -> None:
    ledger = ClientLedger(LIMIT)
    ledger.begin(ledger.share_of("greedy"), 0.0).require(800)
    with pytest.raises(PoolUnavailableError, match="--queue-mib"):
        ledger.begin(ledger.share_of("greedy"), 0.0).require(150)


def test_a_client_has_no_more_requests_in_flight_than_its_quota() -> None:
    ledger = ClientLedger(LIMIT, Quota(inflight=1))
    own = ledger.share_of("lab", Quota(inflight=2))
    first, _ = ledger.begin(own, 0.0), ledger.begin(own, 0.0)
    with pytest.raises(QuotaExceededError, match="lab exceeds its quota of 2 requests in flight"):
        ledger.begin(own, 0.0)
    first.answered(10)
    ledger.begin(own, 0.0)
    ledger.begin(ledger.share_of("other"), 0.0)
    with pytest.raises(QuotaExceededError, match="other exceeds its quota of 1 "):
        ledger.begin(ledger.share_of("other"), 0.0)
    usage = ledger.accounts["lab"]
    assert (usage.requests, usage.refused, usage.sent_bytes) == (3, 1, 10)


@given(st.integers(1, 50), st.lists(st.floats(0.0, 0.5), max_size=100))
def test_a_client_has_no_more_requests_per_second_than_its_quota(
    rate: int, pauses: list[float]
) -> None:
    ledger, now, admitted, waits = ClientLedger(LIMIT), 0.0, 0, []
    own = ledger.share_of("lab", Quota(rate=float(rate)))
    for pause_s in pauses:
        now += pause_s
        try:
            ledger.begin(own, now).answered(0)
        except QuotaExceededError as error:
            waits.append(error.retry_after_s)
            now += error.retry_after_s + 1e-6
            ledger.begin(own, now).answered(0)
        admitted += 1
    assert admitted <= rate * (now + 1) + 1e-3
    assert all(wait_s > 0 for wait_s in waits)
