"""The load of ``scripts/bench serving`` through `dist_net.Client`, from a process of its own.

``python -m benchmarks.pool_load`` reads a `Task` as JSON on stdin and prints what it
measured as JSON on stdout.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections import deque
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.http_load import percentile_ms
from dist_net.serving.client.client import Client, Pending

SEED = 0
INPUTS = 64


@dataclass(frozen=True)
class Task:
    """``window``: how many requests are on their way at once."""

    address: str
    model: str
    seconds: float
    window: int


def measure(task: Task) -> dict[str, Any]:
    """Asks for the task's time; a request's time ends when its result is looked at, in order."""
    times = array("d")
    waiting: deque[tuple[float, Pending]] = deque()
    with Client(task.address) as client:
        shape = {each.name: each.input_shape for each in client.models()}[task.model]
        inputs = np.random.default_rng(SEED).random((INPUTS, *shape), np.float32)
        began = perf_counter()
        while (now := perf_counter()) < began + task.seconds:
            waiting.append((now, client.submit(task.model, inputs[len(times) % INPUTS])))
            if len(waiting) == task.window:
                asked, pending = waiting.popleft()
                pending.result()
                times.append(perf_counter() - asked)
        seconds = perf_counter() - began
        for _, pending in waiting:
            pending.result()
    return {
        "requests_per_s": len(times) / seconds,
        "p50_ms": percentile_ms(times, 50),
        "p99_ms": percentile_ms(times, 99),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Task(**json.loads(sys.stdin.readline())))))
