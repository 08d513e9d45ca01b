"""Timing for the examples in this folder: alternating rounds, CPU time, and tables in Markdown."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from time import thread_time


def cpu_seconds(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    before: Callable[[], object] | None = None,
) -> list[tuple[float, ...]]:
    """Return, for each round, the CPU time of one call of each of ``runs``.

    The runs alternate, so other load on the machine disturbs all of them alike. Compare medians of
    the times, or medians of the ratios within a round. All work must happen in this thread. With
    ``before``, each call is timed alone, after a call of ``before`` that is not timed.
    """
    for run in runs:
        run()  # import, compile and warm the caches
    if before is None:
        return [tuple(map(_seconds_per_call, runs)) for _ in range(rounds)]
    return [tuple(_seconds_after(before, run) for run in runs) for _ in range(rounds)]


def _seconds_per_call(run: Callable[[], object]) -> float:
    start, calls = thread_time(), 0
    while (elapsed := thread_time() - start) < 0.02 or not calls:
        run()
        calls += 1
    return elapsed / calls


def _seconds_after(before: Callable[[], object], run: Callable[[], object]) -> float:
    before()
    start = thread_time()
    run()
    return thread_time() - start


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, with all columns aligned to the right."""
    print(f"| {' | '.join(columns)} |\n|{'---:|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def print_machine() -> None:
    """Print the date, the processor and the number of cores."""
    print(
        f"{date.today():%d %B %Y}, {processor()}, {os.cpu_count()} cores, CPU time of one thread\n"
    )


def processor() -> str:
    """Return the name of the processor, as Linux reports it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
