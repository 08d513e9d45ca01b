"""What a report looks like, and how a run is followed; the server is made up."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dist_net.cli import main, status
from dist_net.cli.status import BAR_CELLS, bar, run_line, run_view, staleness_bars
from dist_net.errors import NoAnswerError, ProtocolError
from dist_net.nets import observer
from dist_net.nets.observer import NO_RECORDS
from dist_net.training.server.metrics import STALENESS_BUCKETS
from dist_net.training.server.protocol import ParameterServer, SendToPeer
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.messages import Equipment, Join, Message, StatusRequest
from dist_net.wire.transport import ServerAccess

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
SETTINGS = RunSettings("digits", "abc", (("weight", (2,)),), samples=40, epochs=2, batch_size=4)


def asked(server: ParameterServer, message: Message, now: float) -> Any:
    [send] = [c for c in server.handle(b"a", message, now) if isinstance(c, SendToPeer)]
    return send.message


@pytest.fixture
def report() -> dict[str, Any]:
    """A real server's, of a worker that was stopped."""
    server = ParameterServer(RunState(SETTINGS, np.zeros(2, np.float32)), term=6 << 48)
    equipment = Equipment("here", 2, 2, 1.5, 1, "openblas 0.3")
    asked(server, Join("one", 1, "abc", 2, equipment=equipment), 0.0)
    server.on_disk.checkpoint_error = "the disk is full"
    server.run.metrics.checkpoints_failed += 1
    told: dict[str, Any] = json.loads(asked(server, StatusRequest(0), 1.0).report)
    return told | {"staleness_histogram": [4, 0, 8, 1]}


def drawn(view: Any, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, soft_wrap=True).print(view)
    return file.getvalue()


def test_a_run_is_shown_with_its_server_disk_exchanges_and_workers(report: dict[str, Any]) -> None:
    shown = drawn(run_view(report | {"samples_per_update": 2048.0, "waiting_share": 0.125}))
    for expected in (
        "2,048 samples per round, workers wait 12% of the time",
        "term 7, start 1",
        "1 now, 1 joined, 0 lost, 0 restarted",
        "0 records (0 bytes) not on disk for 0.0 s; failed never",
        "0 versions ago; failed once; 0 samples repeated",
        "the disk is full",
        "openblas 0.3",
        "one is slow: silent for 1.0 s: it is stopped, or its network is cut",
    ):
        assert expected in shown, shown
    assert max(map(len, shown.splitlines())) <= 80


def test_each_standby_is_shown_with_how_far_it_is_behind(report: dict[str, Any]) -> None:
    behind = {"versions_behind": 1200, "samples_behind": 38400, "seconds_behind": 1.25}
    behind |= {"has_copy": True, "arrived_share": 0.25}
    standby = {"address": "tcp://there:5", "host": "there", "heard_s_ago": 0.5, **behind}
    report |= {"standbys": [standby], "majority_warning": "the run waits"}
    expected = "1,200 versions, 38,400 samples, 1.2 s behind; heard 0.5 s ago"
    shown = drawn(run_view(report), width=200)
    assert f"there at tcp://there:5, {expected}" in shown
    copy = drawn(run_view(report | {"standbys": [standby | {"address": ""}]}), width=200)
    assert f"there copies only, {expected}" in copy
    lacking = run_line(report | {"standbys": [standby | {"has_copy": False}]})
    assert "standby there no copy yet: 25% has arrived" in lacking
    assert "the run waits" in shown
    assert f"standby there {expected}" in run_line(report)


def test_an_asynchronous_run_is_shown_with_its_staleness(report: dict[str, Any]) -> None:
    report |= {"consistency": "async", "staleness_mean": 1.5, "staleness_max": 7}
    shown = drawn(run_view(report))
    assert "staleness 1.5, at most 7" in shown
    assert "2 to 3" in shown  # the histogram
    assert "staleness 1.5, at most 7" in run_line(report)
    assert "2 to 3" not in drawn(run_view(report | {"consistency": "rounds"}))


@pytest.mark.parametrize("kind", ["checkpoint_error", "journal_error", "loss_warning"])
def test_a_warning_is_shown_in_the_view_and_in_the_line(report: dict[str, Any], kind: str) -> None:
    report[kind] = "something to be mended"
    assert "something to be mended" in drawn(run_view(report))
    assert "something to be mended" in run_line(report)


def test_a_line_says_the_same_for_a_log(report: dict[str, Any]) -> None:
    line = run_line(report)
    assert line.startswith("digits training 0.0%; version 0; ")
    assert "journal 0 records, 0.0 s behind; the disk is full; one is slow: silent" in line
    assert "\n" not in line


@pytest.mark.parametrize(("count", "words"), [(0, "0 workers"), (1, "1 worker"), (2, "2 workers")])
def test_one_worker_is_counted_in_the_singular(
    report: dict[str, Any], count: int, words: str
) -> None:
    assert words in run_line(report | {"worker_count": count}).split("; ")


def test_a_bar_is_as_long_as_its_share_and_seen_if_it_is_not_nothing() -> None:
    assert [bar(count, 1000) for count in (0, 1, 1000)] == ["", "▏", "█" * BAR_CELLS]
    assert bar(500, 1000) == "█" * (BAR_CELLS // 2)
    assert bar(0, 0) == ""


def test_buckets_of_staleness_are_named_by_their_numbers() -> None:
    _, *lines = drawn(staleness_bars([1] * STALENESS_BUCKETS)).splitlines()
    names = [line.partition("█")[0].strip() for line in lines]
    assert names[:5] == ["0", "1", "2 to 3", "4 to 7", "8 to 15"]
    assert names[-1] == "16,384 and more"
    assert len(names) == STALENESS_BUCKETS


def test_a_report_of_another_kind_is_an_error_of_ours(report: dict[str, Any]) -> None:
    for wrong in ({}, {"recipe": "x"}, report | {"workers": 7}, report | {"samples_total": 0}):
        with pytest.raises(ProtocolError, match=r"\w+Error\("):
            status.view(wrong)


class Server:
    """Answers each observer with the next of these: reports, or silence."""

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self._answers: Iterator[dict[str, Any] | None] = iter(answers)
        self.asked_from: list[int] = []

    def __call__(self, *_: Any) -> "Server":
        return self

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def status(self, first_record: int = 0) -> dict[str, Any]:
        self.asked_from.append(first_record)
        answer = next(self._answers)
        if answer is None:
            raise NoAnswerError("no answer")
        return answer


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts a server in the place of the network; time passes at once."""

    def put(*answers: dict[str, Any] | None) -> Server:
        server = Server(*answers)
        monkeypatch.setattr(observer, "Observer", server)
        monkeypatch.setattr("time.sleep", lambda _: None)
        return server

    return put


def followed() -> list[dict[str, Any]]:
    said: list[str] = []
    run = observer.Following(ServerAccess("tcp://127.0.0.1:5", None), notify=said.append)
    reports = list(status.followed(run, 1.0, 1.0))
    return [*reports, *({"said": each} for each in said)]


def test_a_run_is_followed_to_its_end_and_records_come_once(serve: Serve) -> None:
    answers = [{"state": "training", "next_record": each} for each in (3, 5)]
    server = serve(*answers, {"state": "finished", "next_record": 6})
    assert [each["next_record"] for each in followed()] == [3, 5, 6]
    assert server.asked_from == [NO_RECORDS, 3, 5]


def test_a_server_that_was_started_again_is_followed_further(serve: Serve) -> None:
    training = {"state": "training"}
    serve(training, None, training, None, {"state": "stopping"})
    again = {"said": "no answer: retrying"}
    assert followed() == [training, training, {"state": "stopping"}, again, again]


def test_a_server_that_stays_silent_ends_it(serve: Serve) -> None:
    serve({"state": "training"}, None, None)
    with pytest.raises(NoAnswerError):
        followed()


def test_following_as_json_gives_an_object_a_line(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    serve({"state": "training", "name": ESCAPE}, {"state": "finished"})
    assert main(["status", "tcp://127.0.0.1:5", "--follow", "--json"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(each)["state"] for each in lines] == ["training", "finished"]
    assert all(each.isprintable() for each in lines)


def test_an_error_is_one_printable_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", f"{tmp_path}/{ESCAPE}\nx"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("option", ["--timeout", "--every"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
def test_seconds_are_numbers_above_zero(
    option: str, value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["status", "tcp://127.0.0.1:5", f"{option}={value}"])
    assert value in capfd.readouterr().err
