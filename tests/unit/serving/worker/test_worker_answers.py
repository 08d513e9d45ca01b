"""What an inference worker answers to a batch whose computation fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from described import described
from dist_net.ground.clock import SystemClock
from dist_net.serving.pool.requests import Status
from dist_net.serving.worker.loaded_models import LoadedModels
from dist_net.serving.worker.loop import InferenceWorker
from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import BatchDone, JoinPool, Load, RunBatch

DESCRIPTION = described("net", 1, input_shape=(1,), classes=1)
FILTERED, FAULTY, GOOD = b"none", b"boom", b"good"


class FilteringNetwork:
    """Fake of a `ServedNetwork`: drops some rows, raises for others, and copies the rest."""

    memory_bytes = 0

    def __init__(self) -> None:
        self.description = DESCRIPTION

    def answer(self, run: RunBatch) -> BatchDone:
        rows = [row for each in run.payloads for row in rows_of(bytes(each))]
        if FAULTY in rows:
            raise ZeroDivisionError("a fault of the model")
        kept = iter([row for row in rows if row != FILTERED])
        outputs = []
        for payload in run.payloads:
            given = (next(kept, b"") for _ in rows_of(bytes(payload)))
            outputs.append(b"".join(given))
        return BatchDone(run.batch_id, bytes(len(outputs)), 0.25, 0.5, tuple(outputs))

    def close(self) -> None:
        pass


def rows_of(payload: bytes) -> list[bytes]:
    return [payload[place : place + 4] for place in range(0, len(payload), 4)]


class Connection:
    """Fake of the socket: keeps what was sent."""

    address = "gateway"

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)


@pytest.fixture
def worker() -> Iterator[InferenceWorker]:
    models = LoadedModels(lambda *_: cast(Any, FilteringNetwork()))
    connection = cast(Any, Connection())
    made = InferenceWorker(
        connection, models, cast(Any, None), JoinPool("w", "host", 1), True, SystemClock()
    )
    models.begin(Load("net", 1, DESCRIPTION.to_json()))
    while not models.finished():
        pass
    yield made
    made.close()


def answer(worker: InferenceWorker, *payloads: bytes) -> BatchDone:
    worker.handle(RunBatch(7, "net", 1, False, payloads))
    return cast(Any, worker)._socket.sent[-1]


def test_only_the_request_fails_that_is_at_fault(worker: InferenceWorker) -> None:
    done = answer(worker, GOOD, FAULTY, GOOD + GOOD)
    assert done.batch_id == 7
    assert done.statuses == bytes([Status.OK, Status.FAILED, Status.OK])
    assert done.payloads == (GOOD, b"ZeroDivisionError: a fault of the model", GOOD + GOOD)
    assert (done.prepare_s, done.compute_s) == (0.5, 1.0)


def test_a_model_that_drops_rows_gives_no_request_the_outputs_of_another(
    worker: InferenceWorker,
) -> None:
    done = answer(worker, FILTERED + b"1st.", b"2nd.", b"3rd.")
    assert done.statuses == bytes([Status.FAILED, Status.OK, Status.OK])
    reason, *outputs = done.payloads
    assert outputs == [b"2nd.", b"3rd."]
    assert b"4 bytes for 2 rows of 4 bytes" in reason


def test_a_request_that_fails_leaves_the_worker_as_it_was(worker: InferenceWorker) -> None:
    assert answer(worker, FAULTY).statuses == bytes([Status.FAILED])
    assert answer(worker, GOOD).payloads == (GOOD,)
