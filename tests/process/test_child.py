"""A process that this one starts: when it counts as ready."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_net.errors import ProcessFailedError
from dist_net.processes.launcher import Child, ProcessSpec
from naming import naming

pytestmark = pytest.mark.main_path

SAYS_IT_IN_TWO_PARTS = """
import sys, time
from pathlib import Path
print("READY", end="", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
print(" ipc:///server", flush=True)
"""


def test_half_a_line_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    (tmp_path / "slow_speaker.py").write_text(SAYS_IT_IN_TWO_PARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child(ProcessSpec("child", "slow_speaker", (str(tmp_path / "gate"),)), tmp_path)
    try:
        eventually(lambda: (tmp_path / "child.out").read_text() == "READY")
        with pytest.raises(ProcessFailedError, match=naming("0 s", "--start-timeout")):
            child.wait_until_ready(0)
        (tmp_path / "gate").touch()
        assert child.wait_until_ready(10) == ["ipc:///server"]
        assert child.wait(60)
    finally:
        child.kill()
