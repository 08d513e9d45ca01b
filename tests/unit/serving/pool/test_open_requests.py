"""What waits, by client, and which requests form the next batch."""

from __future__ import annotations

from itertools import count

import pytest

from dist_net.serving.pool.open_requests import (
    REMEMBERED_S,
    BatchTerms,
    OpenRequests,
)
from dist_net.serving.pool.requests import InferenceRequest
from dist_net.serving.pool.versions import ModelVersions
from reachable import reachable_objects


@pytest.fixture
def queue() -> OpenRequests:
    return OpenRequests({"net": ModelVersions("net")}, count(1))


def add(
    requests: OpenRequests, client: str = "", rows: int = 1, now: float = 0.0, **fields: bool
) -> InferenceRequest:
    payload = len(requests).to_bytes(2, "big")  # others than those of waiting requests
    request = InferenceRequest("net", payload, rows, client=client, **fields)
    requests.open(request, 10.0, now)
    requests.queue_of("net", client).apart_until_s = 0.0  # one of its requests was answered
    return request


def take(
    queue: OpenRequests,
    max_rows: int = 8,
    row_s: float = 0.0,
    now: float = 0.0,
    lends: bool = False,
) -> list[InferenceRequest]:
    """The next batch, if clients are served in the order of their first requests."""
    queues = [*queue.waiting["net"].values()]
    first = queues[0].next(now, lends, suspects=True)
    assert first is not None
    return queue.take(first, queues, BatchTerms(1, max_rows, row_s, lends), now)


def numbers(requests: list[InferenceRequest]) -> list[int]:
    return [one.request_id for one in requests]


def test_the_queue_forgets_what_was_taken_out_of_it(queue: OpenRequests) -> None:
    for number in range(1, 1000):
        add(queue)
        assert queue.queued() == 1
        queue.cancel(number)
        queue.cancel(number)
    assert not queue.waiting
    assert not len(queue)


def test_clients_that_come_once_are_forgotten(queue: OpenRequests) -> None:
    def come(clients: range) -> int:
        for client in clients:
            request = add(queue, client=str(client), now=client * REMEMBERED_S / 10)
            queue.cancel(request.request_id)
        return reachable_objects(queue)

    assert come(range(1000, 5000)) <= come(range(1000)) + 50


def test_a_batch_is_only_as_large_as_ends_in_time(queue: OpenRequests) -> None:
    for client in "abcd":  # with 10 s each
        add(queue, client)
    assert numbers(take(queue, row_s=3.0)) == [1, 2, 3]
    assert numbers(take(queue, row_s=30.0)) == [4]  # it is tried anyway


def test_a_client_that_was_slow_shares_no_batch(queue: OpenRequests) -> None:
    for client in "abba":
        add(queue, client)
    queue.queue_of("net", "b").apart_until_s = 1.0
    assert numbers(take(queue)) == [1, 4]
    assert numbers(take(queue)) == [2, 3]
