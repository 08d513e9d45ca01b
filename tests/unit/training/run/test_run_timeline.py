"""A run's timeline: each event once, everything of the last minutes, bounded for days."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.run_timeline import (
    EVENTS_KEPT,
    FACTS,
    MOMENTS_KEPT,
    RECENT_S,
    RECORDS_KEPT,
    MomentsOfReports,
    RunTimeline,
)
from dist_net.training.run.timeline_files import (
    MAX_FILE_BYTES,
    MAX_READ_BYTES,
    FollowedDirectory,
    TimelineFile,
)

WORKER = {
    "name": "worker-0",
    "host": "a",
    "processes": 1,
    "samples_per_s": 12345.678,
    "heard_s_ago": 0.1,
    "round_trip_s": 0.001,
    "lease_s": None,
    "is_slow": False,
    "exchanged_bytes": 0,
    "slow_because": [],
}


def report(term: int = 1, **changes: Any) -> dict[str, Any]:
    facts = dict.fromkeys(FACTS, 0) | {"state": "training", "term": term, "standbys": []}
    return facts | {"workers": [WORKER], "events": [], "recent_leases": []} | changes


def event(number: int, what: str = "joined", s_ago: float = 0.0) -> dict[str, Any]:
    place = {"host": "a", "name": "worker-0", "reason": "" if what == "joined" else "silent"}
    return {"number": number, "what": what, "s_ago": s_ago, **place}


def piece(number: int, s_ago: float = 0.5) -> list[Any]:
    return [number, "a", "worker-0", s_ago, s_ago - 0.2, 0.15, 0.05]


def test_each_event_and_each_piece_of_a_lease_is_in_one_moment() -> None:
    of_reports = MomentsOfReports()
    first = report(events=[event(0, s_ago=0.25)], recent_leases=[piece(0), piece(1, 0.2)])
    moment = of_reports.moment(first, 1000.0)
    assert moment["events"] == [{"at": 999.75, "what": "joined", "who": "a/worker-0", "text": ""}]
    assert moment["leases"] == {"a/worker-0": [[-0.5, -0.3, 0.15, 0.05], [-0.2, 0.0, 0.15, 0.05]]}
    again = of_reports.moment(first, 1001.0)
    assert (again["events"], again["leases"]) == ([], {})
    restarted = of_reports.moment(report(term=2, events=[event(0, "lost")]), 1002.0)
    assert [each["what"] for each in restarted["events"]] == ["lost"]


def test_a_slow_worker_is_named_with_the_cause() -> None:
    slow = WORKER | {"is_slow": True, "slow_because": ["2 threads on 1 core", "its BLAS"]}
    moment = MomentsOfReports().moment(report(workers=[slow]), 0.0)
    assert moment["slow"] == {"a/worker-0": "2 threads on 1 core; its BLAS"}


def test_days_take_bounded_memory_and_keep_the_last_minutes_and_all_computing() -> None:
    timeline, ends = RunTimeline(), 3 * 86400
    for at in range(ends):
        leases = {"a/w": [[-1.0, 0.0, 0.75, 0.25]]}
        timeline.take({"at": float(at), "samples": at, "leases": leases, "events": [{"at": at}]})
        if at % 20 == 0:
            timeline.take({"kind": "train", "samples": at})
    moments = [each for each in timeline.lines if "at" in each]
    assert len(moments) <= 2 * MOMENTS_KEPT + RECENT_S + 2
    assert [each["at"] for each in moments[-100:]] == list(range(ends - 100, ends))
    assert sum(piece[2] for each in moments for piece in each["leases"]["a/w"]) == 0.75 * ends
    assert max(len(each["events"]) for each in moments) == EVENTS_KEPT
    records = [each["samples"] for each in timeline.lines if "kind" in each]
    assert len(records) <= 4 * RECORDS_KEPT
    assert records == sorted(records)
    assert records[0] < ends / 50


def test_a_viewer_reads_what_a_run_writes_and_only_what_it_has_not_seen(tmp_path: Path) -> None:
    directory, now = RunDirectory(tmp_path), 1000.0
    file = TimelineFile(directory, lambda: now)
    feed = FollowedDirectory(directory)
    seen, message = feed.since("")
    assert json.loads(message)["lines"] == []
    file.notified("worker-1 was killed")
    feed.poll()
    seen, message = feed.since(seen)
    [line] = json.loads(message)["lines"]
    assert line["events"] == [{"at": 1000.0, "text": "worker-1 was killed"}]
    assert feed.since(seen) == (seen, "")
    file.notified("worker-1 was started again")  # in the same millisecond
    feed.poll()
    seen, message = feed.since(seen)
    assert [each["at"] for each in json.loads(message)["lines"]] == [1000.0]
    for samples in range(3):
        now += 0.25
        file.reported(report(samples=samples))
    directory.metrics.write_text('{"kind": "test", "samples": 1}\nno JSON\n{"kind": "tr')
    feed.poll()
    lines = json.loads(feed.since(seen)[1])["lines"]
    assert [each.get("samples") for each in lines] == [1, 0, 2]
    assert set(lines[-1]) == {"at", "samples", "workers"} - {"workers"}  # what has changed
    for other in ("", "0-0", f"{seen}9", "nonsense"):
        assert json.loads(feed.since(other)[1])["about"]["name"] == tmp_path.name


def test_a_long_file_is_replaced_and_a_viewer_begins_again(tmp_path: Path) -> None:
    directory, now = RunDirectory(tmp_path), 1000.0
    file = TimelineFile(directory, lambda: now)
    file.notified("first")
    feed = FollowedDirectory(directory)
    seen, _ = feed.since("")
    directory.timeline.write_bytes(directory.timeline.read_bytes() + b" " * MAX_FILE_BYTES)
    now += 1
    file.notified("second")
    assert directory.timeline.stat().st_size < 1000
    feed.poll()
    texts = [each["events"][0]["text"] for each in json.loads(feed.since(seen)[1])["lines"]]
    assert texts == ["first", "second"]


def test_a_file_of_many_workers_is_not_replaced_again_and_again(tmp_path: Path) -> None:
    directory, now = RunDirectory(tmp_path), 1000.0
    file, identities = TimelineFile(directory, lambda: now), list[int]()
    for second in range(600):
        now += 0.5
        workers = [
            WORKER | {"name": f"worker-{number}", "samples_per_s": second + number / 7}
            for number in range(200)
        ]
        pieces = [[200 * second + i, "a", f"worker-{i}", 0.5, 0.3, 0.15, 0.05] for i in range(200)]
        file.reported(report(workers=workers, recent_leases=pieces))
        identities.append(directory.timeline.stat().st_ino)
    replaced = sum(one != other for one, other in pairwise(identities))
    assert 1 <= replaced <= 3
    assert directory.timeline.stat().st_size < MAX_READ_BYTES // 2 + 2**16


def test_a_full_disk_does_not_end_a_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "missing")
    TimelineFile(directory).notified("no place for this")
    assert not directory.timeline.exists()


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", "no JSON", "7", "{}", '{"at": "x"}', '{"at": null}', '{"at": 1e999}'),
        *(
            '{"kind": [], "samples": 1}',
            '{"kind": "test", "samples": {}}',
            '{"at": 1, "events": 7}',
        ),
        *(
            '{"at": 1, "events": [5]}',
            '{"at": 1, "leases": {"a/b": [[1]]}}',
            '{"at": 1, "leases": 5}',
        ),
        *('{"at": 1, "workers": []}', '{"at": 1, "leases": {"a/b": [[1, 2, 3, "x"]]}}', "[" * 9999),
    ],
)
def test_a_damaged_line_is_left_out_and_the_others_stay(tmp_path: Path, line: str) -> None:
    run = RunDirectory(tmp_path)
    moments = [json.dumps({"at": at, "events": [], "leases": {}}) for at in range(3 * MOMENTS_KEPT)]
    run.timeline.write_text("\n".join((line, *moments, line, "")))
    followed = FollowedDirectory(run)
    kept = json.loads(followed.since("")[1])["lines"]
    assert kept[-1]["at"] == 3 * MOMENTS_KEPT - 1
    TimelineFile(run).notified("resumed")  # by a resumed run
    followed.poll()
    assert json.loads(followed.since("")[1])["lines"][-1]["events"][-1]["text"] == "resumed"
