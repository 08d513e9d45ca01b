"""How long a process that starts is waited for, by a clock of the test's own."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_net.errors import ProcessFailedError
from dist_net.processes import launcher
from dist_net.processes.launcher import RunningChild
from naming import naming


class Runs:
    """A process that runs for ever."""

    pid = 1

    def poll(self) -> int | None:
        return None

    def wait(self, timeout: float | None = None) -> int:
        raise AssertionError("nobody waits for its end")

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def child_that_prints(
    lines: Iterator[str], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> RunningChild:
    """Each of these lines, or nothing, a second after the one before."""
    child = RunningChild("server", logs, Runs())
    child.said.touch()
    passed_s = 0

    def sleep(_: float) -> None:
        nonlocal passed_s
        passed_s += 1
        with child.said.open("a") as opened:
            opened.write(next(lines))

    clock = SimpleNamespace(monotonic=lambda: passed_s, sleep=sleep)
    monkeypatch.setattr(launcher, "time", clock)
    return child


def test_one_that_reports_that_it_is_loading_is_waited_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([*["LOADING the dataset\n"] * 600, "READY ipc:///server\n"])
    child = child_that_prints(lines, tmp_path, monkeypatch)
    shown: set[str] = set()
    ready = child.wait_until_ready(2, lambda: shown.add(child.is_loading))
    assert ready == ["ipc:///server"]
    assert shown == {"", "the dataset"}
    assert child.is_loading == ""


def test_one_that_reports_nothing_any_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([*["LOADING the dataset\n"] * 10, *[""] * 6])
    child = child_that_prints(lines, tmp_path, monkeypatch)
    with pytest.raises(ProcessFailedError, match=naming("server", "5 s", "--start-timeout")):
        child.wait_until_ready(5)
