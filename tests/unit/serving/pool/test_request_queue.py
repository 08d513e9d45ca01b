"""What waits, and in which batches it will run."""

from __future__ import annotations

from dist_net.serving.pool.request_queue import LaneKey, QueuedRequest, RequestQueue

LANE = LaneKey("net", None, False)


def request(number: int, rows: int = 1) -> QueuedRequest:
    return QueuedRequest(number, LANE, b"", rows, float(number), 10.0, 1)


def test_the_queue_forgets_what_was_taken_out_of_it() -> None:
    queue = RequestQueue()
    for number in range(1000):
        queue.add(request(number), 8)
        assert queue.remove(request(number))
        assert not queue.remove(request(number))
    assert not queue.lanes


def numbers(requests: list[QueuedRequest]) -> list[int]:
    return [one.request_id for one in requests]


def taken(queue: RequestQueue) -> list[list[int]]:
    """The batches in the queue's only lane, one after the other."""
    batches = []
    while queue.lanes:
        (lane,) = queue.by_age()
        rows, left = lane.next_rows, lane.batches
        batch = queue.take(lane)
        assert sum(one.rows for one in batch) == rows
        assert lane.batches == left - 1
        batches.append(numbers(batch))
    return batches


def test_batches_are_as_large_as_the_strictest_in_them_allows() -> None:
    queue = RequestQueue()
    for number, max_rows in enumerate([8, 8, 3, 8, 2, 2, 8]):
        queue.add(request(number), max_rows)
    assert taken(queue) == [[0, 1, 2], [3, 4], [5, 6]]


def test_a_request_of_more_rows_than_fit_begins_the_next_batch() -> None:
    queue = RequestQueue()
    for number, rows in enumerate([3, 4, 2, 8, 1]):
        queue.add(request(number, rows=rows), 8)
    (lane,) = queue.by_age()
    assert (lane.rows, lane.batches, lane.is_full) == (18, 4, True)
    assert taken(queue) == [[0, 1], [2], [3], [4]]


def test_others_join_in_place_of_those_that_were_taken_out() -> None:
    queue = RequestQueue()
    waiting = [request(number) for number in range(3)]
    for one in waiting:
        queue.add(one, 3)
    (lane,) = queue.by_age()
    assert lane.is_full
    queue.remove(waiting[1])
    assert not lane.is_full
    queue.add(request(3), 3)
    queue.add(request(4), 3)
    assert taken(queue) == [[0, 2, 3], [4]]


def test_what_was_put_back_is_taken_first_and_alone() -> None:
    queue = RequestQueue()
    again = request(9)
    again.runs_alone = True
    for number in range(3):
        queue.add(request(number), 2)
    queue.put_back(again)
    (lane,) = queue.by_age()
    assert lane.is_full
    assert numbers(queue.take(lane)) == [9]
    assert numbers(queue.take(lane)) == [0, 1]
    assert (lane.rows, lane.batches) == (1, 1)
    queue.add(again, 8)
    queue.take(lane)
    queue.put_back(again)
    (lane,) = queue.by_age()
    assert lane.is_full  # and nobody joins it
    queue.add(request(3), 8)
    assert taken(queue) == [[9], [3]]


def test_a_batch_that_had_not_begun_stays_together_when_it_is_put_back() -> None:
    queue = RequestQueue()
    for number in range(4):
        queue.add(request(number), 2)
    (lane,) = queue.by_age()
    batch = queue.take(lane)
    for one in reversed(batch):
        queue.put_back(one)
    queue.add(request(4), 2)
    assert taken(queue) == [[0, 1], [2, 3], [4]]
