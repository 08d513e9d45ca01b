"""What a process of the cluster does when it is told to stop."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dist_net.processes.entry import StartReports, entry_point, stop_on_signals


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    """What the signals said; this process gets its own handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    said: list[str] = []
    stop_on_signals(said.append)
    yield said
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_second_interrupt_ends_the_process_at_once(reasons: list[str]) -> None:
    signal.raise_signal(signal.SIGINT)
    assert reasons == ["SIGINT received"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_sigterm_may_come_twice(reasons: list[str]) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert reasons == ["SIGTERM received"] * 2


@pytest.mark.parametrize("library", [SimpleNamespace(prctl=lambda *_: 0), SimpleNamespace()])
def test_a_parent_that_has_ended_already_is_noticed(
    library: object, reasons: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    gone = os.getppid() + 1
    stop_on_signals(reasons.append, gone)
    for thread in threading.enumerate():
        if thread.name == "parent-watch":
            thread.join()
    assert reasons == ["the process that started this one is gone"]


def test_reports_of_a_process_that_fails_to_start_end_with_it() -> None:
    with pytest.raises(OSError), StartReports("the dataset"):  # noqa: PT011
        raise OSError
    assert "start-reports" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("reasons")  # which restores the handlers
def test_pillows_warnings_of_clients_images_are_not_kept() -> None:
    kept: dict[object, object] = {}

    def run(_: object) -> int:
        warnings.warn_explicit("odd", UserWarning, "PIL/Image.py", 1, "PIL.Image", kept)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert entry_point(lambda _: None, run, words=[]) == 0
    assert "odd" not in str(kept)
