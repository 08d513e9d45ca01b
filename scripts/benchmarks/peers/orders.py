"""A peer's process that waits for orders: how rounds of several processes are interleaved.

The speed of a shared machine drifts, so that what is compared has to be measured in turn. Each
peer stays in a process of its own, which keeps what it loaded, and measures when it is told to:
a line of JSON on stdin, ``{"order": "time", "batch": 8, "threads": 2, "seconds": 0.5}``, is
answered by one on stdout.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.timing import LayerStep, round_us, time_layers
from dist_net.ground.release import VERSION

Run = Callable[[], Any]


def version_of(distribution: str) -> str:
    """Return the installed version of a peer, or this checkout's."""
    return VERSION if distribution == "dist-net" else version(distribution)


def obey(orders: Mapping[str, Callable[..., Any]]) -> None:
    """Carries out the orders on stdin, by their names, until it ends."""
    # A library may print what it likes: only answers reach the other process.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(orders[order.pop("order")](**order)), file=answers, flush=True)


class Peer:
    """What a peer's process can do; its module says how to ``load`` and what else it has.

    ``load(directory, batch, threads)`` gives a function that does the work once; what was loaded
    stays. ``prepare(directory)`` writes what loading takes from the directory, once for all
    processes. ``layers(directory, batch, threads)`` gives the steps of one run.
    """

    def __init__(
        self,
        distribution: str,
        load: Callable[[Path, int, int], Run],
        prepare: Callable[[Path], None] = lambda _: None,
        layers: Callable[[Path, int, int], Sequence[LayerStep]] = lambda *_: (),
    ) -> None:
        self._distribution = distribution
        self._load = load
        self._prepare = prepare
        self._layers = layers
        self._runs: dict[tuple[int, int], Run] = {}
        self._directory = Path(sys.argv[1])

    def obey(self) -> None:
        """Carries out the orders on stdin until it ends."""
        orders = ("prepare", "answer", "time", "layers", "version", "peak_bytes")
        obey({name: getattr(self, f"_order_{name}") for name in orders})

    def _run(self, batch: int, threads: int) -> Run:
        if (batch, threads) not in self._runs:
            self._runs[batch, threads] = self._load(self._directory, batch, threads)
        return self._runs[batch, threads]

    def _order_prepare(self) -> None:
        self._prepare(self._directory)

    def _order_answer(self, batch: int, threads: int, runs: int = 1) -> Any:
        """What the work gave, of each run."""
        run = self._run(batch, threads)
        return [run().tolist() for _ in range(runs)]

    def _order_time(self, batch: int, threads: int, seconds: float) -> float:
        """Microseconds of a run, a median over about so many seconds."""
        return round_us(self._run(batch, threads), seconds)

    def _order_layers(
        self, batch: int, threads: int, seconds: float
    ) -> list[dict[str, float | str]]:
        steps = self._layers(self._directory, batch, threads)
        return time_layers(steps, batch, seconds, perf_counter)

    def _order_version(self) -> str:
        return version_of(self._distribution)

    def _order_peak_bytes(self) -> int:
        """The most memory that this process had at once (Linux: VmHWM)."""
        status = Path("/proc/self/status").read_text()
        (line,) = [each for each in status.splitlines() if each.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
