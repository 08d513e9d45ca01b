"""What waits, and in which batches it will run."""

from __future__ import annotations

from itertools import count

from described import described
from dist_net.serving.pool.membership import RunningBatch, Worker
from dist_net.serving.pool.open_requests import OpenRequests
from dist_net.serving.pool.requests import InferenceRequest
from dist_net.serving.pool.versions import ModelVersions


def open_requests() -> OpenRequests:
    return OpenRequests({"net": ModelVersions("net")}, count())


def add(requests: OpenRequests, max_rows: int, rows: int = 1) -> InferenceRequest:
    request = InferenceRequest("net", b"", rows)
    requests.open(request, 10.0, max_rows, 0.0)
    return request


def test_the_queue_forgets_what_was_taken_out_of_it() -> None:
    requests = open_requests()
    for number in range(1000):
        add(requests, 8)
        assert requests.queued() == requests.queued("net") == 1
        requests.cancel(number)
        requests.cancel(number)
    assert not requests.lanes
    assert not len(requests)


def numbers(requests: list[InferenceRequest]) -> list[int]:
    return [one.request_id for one in requests]


def taken(queue: OpenRequests) -> list[list[int]]:
    """The batches in the queue's only lane, one after the other."""
    batches = []
    while queue.lanes:
        (lane,) = queue.lanes.values()
        rows, left = lane.oldest.planned.rows, lane.batches
        batch = queue.take(lane)
        assert sum(one.rows for one in batch) == rows
        assert lane.batches == left - 1
        batches.append(numbers(batch))
    return batches


def test_batches_are_as_large_as_the_strictest_in_them_allows() -> None:
    queue = open_requests()
    for max_rows in [8, 8, 3, 8, 2, 2, 8]:
        add(queue, max_rows)
    assert taken(queue) == [[0, 1, 2], [3, 4], [5, 6]]


def test_a_request_of_more_rows_than_fit_begins_the_next_batch() -> None:
    queue = open_requests()
    for rows in [3, 4, 2, 8, 1]:
        add(queue, 8, rows)
    (lane,) = queue.lanes.values()
    assert (lane.rows, lane.batches, lane.is_full) == (18, 4, True)
    assert taken(queue) == [[0, 1], [2], [3], [4]]


def test_others_join_in_place_of_those_that_were_taken_out() -> None:
    queue = open_requests()
    waiting = [add(queue, 3) for _ in range(3)]
    (lane,) = queue.lanes.values()
    assert lane.is_full
    queue.cancel(waiting[1].request_id)
    assert not lane.is_full
    add(queue, 3)
    add(queue, 3)
    assert taken(queue) == [[0, 2, 3], [4]]


def lost(*batches: list[InferenceRequest]) -> Worker:
    running = {
        number: RunningBatch(number, described("net"), False, batch, len(batch), 0.0, 0.0)
        for number, batch in enumerate(batches)
    }
    return Worker(1, b"node", "worker", "host", 1, 0.0, running=running)


def test_what_was_put_back_is_taken_first_and_alone() -> None:
    queue = open_requests()
    for _ in range(3):
        add(queue, 2)
    (lane,) = queue.lanes.values()
    assert queue.retry(lost(queue.take(lane)), 1.0) == []
    assert (lane.rows, lane.batches) == (3, 3)
    assert lane.is_full
    add(queue, 8)
    assert taken(queue) == [[0], [1], [2, 3]]
    add(queue, 8)
    (lane,) = queue.lanes.values()
    queue.retry(lost(queue.take(lane)), 1.0)
    add(queue, 8)  # and does not join the request before
    assert taken(queue) == [[4], [5]]


def test_a_batch_that_had_not_begun_stays_together_when_it_is_put_back() -> None:
    queue = open_requests()
    for _ in range(5):
        add(queue, 2)
    (lane,) = queue.lanes.values()
    queue.retry(lost(queue.take(lane), queue.take(lane)), 1.0)
    assert taken(queue) == [[0], [1], [2, 3], [4]]
