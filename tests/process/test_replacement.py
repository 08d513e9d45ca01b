"""A process that this one starts again when it has died, unless that would be in vain."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dist_net.processes.child import Child
from dist_net.processes.replacement import ReplacedChild

Eventually = Callable[[Callable[[], Any]], Any]

WAITS = "import time\ntime.sleep(600)"
SAYS_WHY = "import sys\nprint('FAILED no such recipe', flush=True)\nsys.exit(2)"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Child]:
    """Starts a process of this source."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start_process(source: str) -> Child:
        (tmp_path / "module_of_child.py").write_text(source)
        return Child("child", "module_of_child", [], tmp_path)

    return start_process


def test_one_that_is_killed_is_started_again_until_that_is_used_up(
    start: Callable[[str], Child], eventually: Eventually
) -> None:
    replaced = ReplacedChild(partial(start, WAITS), restarts=1)
    try:
        assert replaced.look() is None
        first = replaced.child
        first.kill()
        assert "child: it ended with code -9" in (replaced.look() or "")
        eventually(lambda: replaced.look() or replaced.child is not first)
        assert replaced.child.exit_code is None
        replaced.child.kill()
        assert replaced.look() is None
        assert replaced.is_given_up
    finally:
        replaced.child.kill()


def test_one_that_says_why_it_ends_is_not_started_again(start: Callable[[str], Child]) -> None:
    replaced = ReplacedChild(partial(start, SAYS_WHY), restarts=3)
    assert replaced.child.wait(60)
    assert replaced.look() is None
    assert replaced.is_given_up
    assert "no such recipe" in str(replaced.child.failure())
