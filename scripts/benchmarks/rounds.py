"""Several processes that are measured in turn, so that the drift of a machine hits them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, NamedTuple

from benchmarks.peers.peer_process import PeerProcess, missing_packages

Say = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """How often and how long: ``rounds`` of ``seconds`` for each case, ``starts`` of a process.

    ``pause_s`` before each measurement lets the threads of the last one go to sleep: while they
    wait for more work they spin, and would take a processor from the next one.
    """

    rounds: int = 5
    seconds: float = 0.5
    starts: int = 3
    pause_s: float = 0.3


@dataclass(frozen=True)
class Contestant:
    """What is measured: a module of ``peers``, the packages it needs, and its cases.

    A case is (batch, threads); ``extra`` is what installs the packages.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    cases: tuple[tuple[int, int], ...]
    arguments: tuple[str, ...] = ()
    extra: str = "peers"

    def process(self, directory: Path) -> PeerProcess:
        """A new process of it."""
        return PeerProcess(f"peers.{self.module}", directory, *self.arguments)


class Start(NamedTuple):
    """Of a fresh process: seconds to its first answer, and the most bytes that it had till then."""

    seconds: float
    peak_bytes: int


Medians = dict[tuple[int, int], float]


class Contest:
    """Contestants in their processes, which end with it: a context manager.

    ``directory`` is where the task lies. What is not installed is left out, and said so.
    """

    def __init__(
        self, contestants: Sequence[Contestant], directory: Path, schedule: Schedule, say: Say
    ):
        self._directory = directory
        self._schedule = schedule
        self._say = say
        self._stack = ExitStack()
        self._processes: dict[str, PeerProcess] = {}
        self.contestants: list[Contestant] = []
        for each in contestants:
            self.add(each)

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, contestant: Contestant) -> None:
        """One more, unless it lacks a package."""
        if reason := missing_packages(contestant.packages):
            self._say(
                f"left out {contestant.name}: {reason}; pip install -e '.[{contestant.extra}]'"
            )
        else:
            self.contestants.append(contestant)

    def prepare(self) -> None:
        """Each writes what its processes load."""
        for each in self.contestants:
            self._say(f"preparing {each.name}")
            with each.process(self._directory) as process:
                process.order("prepare")

    def starts(self, batch: int, threads: int) -> dict[str, Start]:
        """What a fresh process of each takes to its first answer, as medians, in turn."""
        found: dict[str, list[Start]] = {each.name: [] for each in self.contestants}
        for turn in range(self._schedule.starts):
            for each in self.contestants:
                self._say(f"start {turn + 1} of {self._schedule.starts}: {each.name}")
                sleep(self._schedule.pause_s)
                began = perf_counter()
                with each.process(self._directory) as process:
                    process.order("answer", batch=batch, threads=threads)
                    seconds = perf_counter() - began
                    found[each.name].append(Start(seconds, process.order("peak_bytes")))
        return {name: _median_start(starts) for name, starts in found.items()}

    def order(self, contestant: Contestant, name: str, **details: Any) -> Any:
        """What the process of a contestant, which stays, answers to an order."""
        if contestant.name not in self._processes:
            process = self._stack.enter_context(contestant.process(self._directory))
            self._processes[contestant.name] = process
        return self._processes[contestant.name].order(name, **details)

    def times(self) -> dict[str, Medians]:
        """Microseconds of each case of each contestant: medians over the rounds."""
        schedule = self._schedule
        found: dict[str, dict[tuple[int, int], list[float]]] = {
            each.name: {case: [] for case in each.cases} for each in self.contestants
        }
        cases = list(dict.fromkeys(case for each in self.contestants for case in each.cases))
        for turn in range(schedule.rounds):
            # Case by case, so that what is compared is measured within seconds of each other.
            for batch, threads in cases:
                self._say(
                    f"round {turn + 1} of {schedule.rounds}: batch {batch}, threads {threads}"
                )
                for each in self.contestants:
                    if (batch, threads) in each.cases:
                        details = {"batch": batch, "threads": threads, "seconds": schedule.seconds}
                        sleep(schedule.pause_s)
                        time = self.order(each, "time", **details)
                        found[each.name][batch, threads].append(time)
        return {
            name: {case: median(times) for case, times in of.items()} for name, of in found.items()
        }


def _median_start(starts: Sequence[Start]) -> Start:
    seconds, peaks = zip(*starts, strict=True)
    return Start(median(seconds), int(median(peaks)))
