"""How ``scripts/bench serving`` counts what became of its requests."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.http_load import Connection, Results, Task
from benchmarks.served import TINY_SHAPE, PoolSize, image_requests, row_requests


def answer(*outputs: float) -> bytes:
    return json.dumps({"outputs": [{"data": outputs}]}).encode()


def response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def results(**settings: Any) -> Results:
    return Results(Task(1, [], 1.0, **settings))


class SentTo:
    """A transport that only keeps what is written."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, content: bytes) -> None:
        self.sent += content


def connected() -> tuple[Connection, SentTo, list[tuple[int, bytes]]]:
    heard: list[tuple[int, bytes]] = []
    connection = Connection(lambda _, status, body: heard.append((status, body)))
    transport = SentTo()
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, transport, heard


def test_an_answer_may_come_in_pieces() -> None:
    connection, transport, heard = connected()
    connection.send(b"GET", 3, 0.0)
    assert transport.sent == b"GET"
    whole = response("503 Service Unavailable", b"full")
    for at in range(len(whole)):
        assert heard == []
        connection.data_received(whole[at : at + 1])
    assert heard == [(503, b"full")]


def test_a_lost_connection_is_an_result_only_of_a_request() -> None:
    connection, _, heard = connected()
    connection.send(b"GET", 3, 0.0)
    connection.connection_lost(None)
    connection.connection_lost(None)
    assert heard == [(0, b"")]


def test_results_are_counted_by_status_and_time() -> None:
    found = results(deadline_s=0.5)
    for seconds in (0.1, 0.2, 0.6):
        found.note(200, 0.0, seconds, 0, answer(1.0))
    found.note(503, 0.0, 0.01, 0, b"full")
    found.note(0, 0.0, 0.3, 0, b"")
    summary = found.summary(2.0)
    assert summary["statuses"] == {"0": 1, "200": 3, "503": 1}
    assert (summary["requests_per_s"], summary["in_time_per_s"], summary["late"]) == (1.5, 1.0, 1)
    assert (summary["p50_ms"], summary["refusal_p50_ms"]) == (200.0, 10.0)
    assert summary["errors"] == {"503 full": 1, "0 ": 1}


def test_an_answer_after_the_end_is_none_of_the_throughput() -> None:
    found = results(deadline_s=0.5)
    found.stop = 1.0
    found.note(200, 0.9, 1.0, 0, answer(1.0))
    found.note(200, 0.9, 1.1, 0, answer(1.0))
    found.note(200, 0.9, 2.0, 0, answer(1.0))
    summary = found.summary(1.0)
    assert (summary["requests_per_s"], summary["in_time_per_s"], summary["late"]) == (1, 1, 1)
    assert summary["p50_ms"] == pytest.approx(200.0)


def test_the_engine_s_best_size_is_best_over_all_rounds_and_not_in_a_lucky_one() -> None:
    rounds = [{4: 10.0, 8: 11.0}, {4: 15.0, 8: 11.0}, {4: 10.0, 8: 11.5}]
    assert serving.best_size(rounds) == 8


def test_a_pool_s_share_is_of_the_engine_in_the_same_round() -> None:
    pool = PoolSize(workers=1, threads=2)
    rounds = [{"requests_per_s": n, "p50_ms": 1.0, "p99_ms": 2.0} for n in (8.0, 9.0, 20.0)]
    loop = serving.closed_loop("net", pool, rounds, [10.0, 10.0, 20.0])
    assert loop.share == 0.9
    assert loop.row == {
        "interface": "http",
        "model": "net",
        "clients": 16,
        "workers": 1,
        "threads": 2,
        "requests_per_s": 9.0,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
    }
    assert pool.options == ("--workers", "1", "--threads", "2")


@pytest.mark.parametrize(("is_exact", "wrong"), [(False, 1), (True, 2)])
def test_an_answer_that_is_not_the_first_one_to_its_request_is_wrong(
    is_exact: bool, wrong: int
) -> None:
    found = results(compares=True, is_exact=is_exact)
    found.note(200, 0.0, 0.1, 0, answer(1.0, 2.0))
    found.note(200, 0.0, 0.1, 1, answer(9.0, 9.0))
    found.note(200, 0.0, 0.1, 0, answer(1.0, 2.0))
    found.note(200, 0.0, 0.1, 0, answer(1.0, 2.0 + 1e-7))
    found.note(200, 0.0, 0.1, 0, answer(1.0, 2.1))
    assert found.wrong == wrong


def test_requests_are_of_the_open_inference_protocol(tmp_path: Path) -> None:
    head, _, body = (
        Path(row_requests(tmp_path / "rows", "tiny", 2.0)[0]).read_bytes().partition(b"\r\n\r\n")
    )
    request = json.loads(body)
    assert head.startswith(b"POST /v2/models/tiny/infer HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert request["parameters"] == {"timeout": 2_000_000}
    (tensor,) = request["inputs"]
    assert (tensor["shape"], len(tensor["data"])) == ([1, *TINY_SHAPE], 784)


def test_an_image_follows_its_header(tmp_path: Path) -> None:
    content = Path(image_requests(tmp_path / "images", "net", 2.0)[0]).read_bytes()
    head, _, body = content.partition(b"\r\n\r\n")
    size = int(head.partition(b"Inference-Header-Content-Length: ")[2].split(b"\r")[0])
    (tensor,) = json.loads(body[:size])["inputs"]
    assert tensor["parameters"]["binary_data_size"] == len(body) - size
    assert int.from_bytes(body[size : size + 4], "little") == len(body) - size - 4
    assert body[size + 4 : size + 6] == b"\xff\xd8"  # a JPEG begins so
