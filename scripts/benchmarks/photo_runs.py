"""``dist-net train FOLDER``, timed from its start to its first line, and to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

from benchmarks import FINDS_BENCHMARKS
from benchmarks.errors import BenchmarkError

DEADLINE_S = 600.0


class FolderRun(NamedTuple):
    """How long a run took, whose report lies in its directory at the end."""

    seconds: float
    first_line_s: float


def timed_run(folder: Path) -> FolderRun:
    """A run with two workers and an empty cache of images; raises BenchmarkError if it fails."""
    with TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        command = [sys.executable, "-m", "dist_net", "train", str(folder)]
        began = perf_counter()
        with subprocess.Popen(
            [*command, "--workers", "2", "--run-dir", str(run)],
            env=FINDS_BENCHMARKS | {"XDG_CACHE_HOME": temporary},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            lines = [process.stderr.readline()]
            first_line_s = perf_counter() - began
            lines += process.stderr
        seconds = perf_counter() - began
        if process.returncode != 0 or not (run / "report.html").exists():
            raise BenchmarkError(f"{' '.join(command)} failed: {lines[-1].strip()}")
        return FolderRun(seconds, first_line_s)
