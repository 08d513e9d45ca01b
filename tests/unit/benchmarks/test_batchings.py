"""How `bench serving` finds out whether a picture's answer depends on its company."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import batchings
from benchmarks.batchings import Questions, Tally, Watch
from benchmarks.served import CONVOLUTIONS, write_net
from dist_net.errors import BenchmarkError, PoolUnavailableError, RequestFailedError

ANSWERS = np.random.default_rng(0).random((5, 3), np.float32)
ROWS = np.arange(5, dtype=np.float32).reshape(5, 1, 1)
QUESTIONS = Questions("net", [bytes([number]) for number in range(5)], ROWS, ANSWERS)


class Given:
    """An answer that is there."""

    def __init__(self, probabilities: Any) -> None:
        self.probabilities = probabilities

    def result(self) -> Any:
        if isinstance(self.probabilities, Exception):
            raise self.probabilities
        return self


class Answering:
    """A client of a pool that gives the right answers; ``asked``: of what kinds."""

    def __init__(self) -> None:
        self.asked: set[tuple[str, int]] = set()

    def submit_picture(self, model: str, picture: bytes) -> Given:
        self.asked.add(("body", 1))
        return Given(ANSWERS[picture[0]])

    def submit(self, model: str, inputs: Any) -> Given:
        self.asked.add(("row", 1) if inputs.ndim == 2 else ("rows", len(inputs)))
        return Given(ANSWERS[inputs.ravel().astype(int)])


def note(tally: Tally, found: Any, expected: bytes) -> None:
    tally.note(Given(found), expected)  # type: ignore[arg-type]


def test_what_is_asked_is_compared_with_the_answer_of_each_picture_alone() -> None:
    client, generator, tally = Answering(), np.random.default_rng(0), Tally()
    for _ in range(200):
        tally.note(*QUESTIONS.ask(client, generator))  # type: ignore[arg-type]
    assert (tally.answered, tally.differing) == (200, 0)
    assert client.asked == {("body", 1), ("row", 1), *(("rows", n) for n in range(1, 5))}


def test_the_last_bit_makes_an_answer_another() -> None:
    tally, answer = Tally(), ANSWERS[0]
    note(tally, answer, answer.tobytes())
    note(tally, np.nextafter(answer, np.float32(1)), answer.tobytes())
    note(tally, ANSWERS[:2], answer.tobytes())
    assert (tally.answered, tally.differing) == (3, 2)


def test_what_was_not_answered_is_refused_or_an_error_and_no_difference() -> None:
    tally = Tally(answered=4, differing=1)
    note(tally, PoolUnavailableError("no worker is left"), b"")
    note(tally, RequestFailedError("put aside"), b"")
    total = Tally(answered=1, refused=1) + tally
    assert (total.answered, total.differing, total.refused) == (5, 1, 2)
    assert total.errors == {"RequestFailedError: put aside": 1}


class Pool:
    """A gateway whose status says what it is told to."""

    def __init__(self) -> None:
        self.batch_rows: dict[str, int] = {"1": 40, "2": 7}
        self.workers: list[dict[str, int]] = [{"process_id": 11, "batches": 1}]

    def status(self) -> dict[str, Any]:
        model = {"batch_rows": dict(self.batch_rows), "retried": 3}
        return {"models": [model], "workers": self.workers}


@pytest.fixture
def watch() -> Callable[[Pool, int], Watch]:
    def make(pool: Pool, wanted: int) -> Watch:
        return Watch(pool, wanted)  # type: ignore[arg-type]

    return make


def test_it_goes_on_until_so_many_batches_were_shared(watch: Callable[[Pool, int], Watch]) -> None:
    pool = Pool()
    watched = watch(pool, 10)
    assert not watched.batch_rows  # what was run before does not count
    pool.batch_rows = {"1": 99, "2": 10, "8": 6}
    assert watched.goes_on()
    pool.batch_rows = {"1": 99, "2": 11, "8": 6}
    pool.workers = [{"process_id": 12, "batches": 1}, {"process_id": 13, "batches": 0}]
    assert not watched.goes_on()
    assert watched.batch_rows == {1: 59, 2: 4, 8: 6}
    assert (watched.workers, watched.retried) == ({11, 12}, 3)


def test_it_does_not_go_on_for_ever(
    watch: Callable[[Pool, int], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchings, "LONGEST_S", -1.0)
    with pytest.raises(BenchmarkError, match="10 batches"):
        watch(Pool(), 10).goes_on()


def test_rows_that_their_company_changes_are_found() -> None:
    def company(inputs: Any) -> Any:
        return inputs.reshape(len(inputs), 1) + 1e-3 * len(inputs)

    def alone(inputs: Any) -> Any:
        return inputs.reshape(len(inputs), 1)

    assert batchings.differing_rows(company, ROWS, 99) == 98  # the one left over was alone
    assert batchings.differing_rows(alone, ROWS, 99) == 0


def test_the_net_has_each_kind_of_convolution_and_its_answers_are_the_engine_s(
    tmp_path: Path,
) -> None:
    net = write_net(CONVOLUTIONS, tmp_path / "net")
    questions, convolutions, _ = batchings.prepare(net)
    assert [(each.split()[0], each.split()[-1]) for each in convolutions[:6]] == [
        ("3x3", "im2row"),
        ("3x3", "im2row"),
        ("1x1", "im2row"),
        ("3x3", "winograd4"),
        ("3x3", "winograd2/2"),
        ("3x3", "winograd2"),
    ]
    assert len({answer.tobytes() for answer in questions.answers}) == batchings.PICTURES
    np.testing.assert_allclose(questions.answers.sum(axis=1), 1, rtol=1e-5)


def test_pictures_are_of_both_formats_and_the_same_each_time() -> None:
    first, again = (batchings.pictures(np.random.default_rng(0)) for _ in range(2))
    assert first == again
    assert {each[:2] for each in first} == {b"\xff\xd8", b"\x89P"}
    assert len(set(first)) == batchings.PICTURES
