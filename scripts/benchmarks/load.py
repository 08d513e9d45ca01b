"""A load generator's process, as the benchmark sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from benchmarks import FINDS_BENCHMARKS, http_load, pool_load
from benchmarks.errors import BenchmarkError

START_AND_END_S = 90.0
WARM_UP_S = 3.0


class Load:
    """A task that is being carried out, from now on; ``result`` waits for its end.

    A context manager: the process ends with it.
    """

    def __init__(self, task: http_load.Task | pool_load.Task) -> None:
        module = "http_load" if isinstance(task, http_load.Task) else "pool_load"
        self._deadline_s = task.seconds + START_AND_END_S
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}"],
            env=FINDS_BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    @property
    def is_running(self) -> bool:
        """Whether it still sends."""
        return self._process.poll() is None

    def result(self) -> dict[str, Any]:
        """What it measured. Raises BenchmarkError if it failed, or is overdue."""
        try:
            printed, errors = self._process.communicate(timeout=self._deadline_s)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"no end of a load within {self._deadline_s:g} s") from error
        if self._process.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise BenchmarkError(f"a load ended with code {self._process.returncode}: {last}")
        measured: dict[str, Any] = json.loads(printed)
        if not measured["requests_per_s"]:
            raise BenchmarkError(f"no request of a load was answered: {measured}")
        return measured


def run(task: http_load.Task | pool_load.Task) -> dict[str, Any]:
    """Carries a task out, and gives what it measured."""
    with Load(task) as load:
        return load.result()


def warm_up(port: int, requests: list[str]) -> None:
    """Has each worker run batches of each size, which are prepared for when they first come."""
    run(http_load.Task(port, requests, WARM_UP_S, connections=16))
