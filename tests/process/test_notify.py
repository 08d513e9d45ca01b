"""``dist-net serve --notify``: answers are posted, whatever the receiver does."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dist_net.errors import SettingError
from dist_net.serving.gateway import notifier
from dist_net.serving.gateway.notifier import Notifier
from image_runs import write_run
from naming import naming
from process import test_serve
from process.test_serve_images import GREY, image

serve = test_serve.serve


class Receiver(ThreadingHTTPServer):
    """Replies with the ``statuses``, then 204; holds every request while ``is_open`` is clear."""

    daemon_threads, block_on_close = True, False

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.events = list(statuses), list[dict[str, Any]]()
        self.is_open, self.begun = threading.Event(), threading.Event()
        self.is_open.set()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/hook?a=b"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def end(self) -> None:
        self.is_open.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.begun.set()
        self.server.is_open.wait()
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        if status < 300:
            self.server.events.append({"path": self.path} | json.loads(body))
        self.send_response(status)
        self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(503, 302)  # a redirect is not followed, but tried again
    yield receiver
    receiver.end()


def test_answers_of_the_classes_are_posted_and_no_request_waits(
    serve: Callable[..., Any],
    eventually: Callable[..., Any],
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", threshold=0.5)
    given = "--notify", receiver.url, "--notify-classes", "red,unknown"
    pool = serve(f"colours={run}", "--workers", "1", *given)
    for colour in ((0, 255, 0), (255, 0, 0), GREY):
        assert pool.post("/v1/classify", image(colour))[0] == 200
    eventually(lambda: len(receiver.events) == 2)
    red, unknown = receiver.events
    assert (red["path"], red["event"], red["model"]) == ("/hook?a=b", "answer", "colours")
    assert (red["label"], red["unknown"], unknown["unknown"]) == ("red", False, True)

    receiver.begun.clear()
    receiver.is_open.clear()  # it accepts events, and never replies
    for _ in range(20):
        assert pool.post("/v1/classify", image(GREY))[0] == 200
    assert receiver.begun.wait(60)
    assert len(receiver.events) == 2
    receiver.end()
    assert pool.post("/v1/classify", image(GREY))[0] == 200


def test_beyond_its_bound_the_queue_loses_the_oldest_and_counts_them(
    receiver: Receiver,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notifier, "MAX_WAITING", 2)
    monkeypatch.setattr(notifier, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(notifier, "TIMEOUT_S", 60)
    receiver.statuses.clear()
    receiver.is_open.clear()
    with Notifier(receiver.url) as posting:
        posting.post({"number": 0})
        assert receiver.begun.wait(60)
        for number in range(1, 6):
            posting.post({"number": number})
        receiver.is_open.set()
        eventually(lambda: len(receiver.events) == 3)
        assert [each["number"] for each in receiver.events] == [0, 4, 5]
        receiver.end()
        posting.post({"number": 6})
        eventually(lambda: "lost=4" in caplog.text)
    assert "lost=3" in caplog.text


@pytest.mark.parametrize(
    "url", ["ftp://a", "file:///a", "http://", "http://a:x", "http://[", "http://b@a/"]
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match=naming("--notify", url)):
        Notifier(url)
