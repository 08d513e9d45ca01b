"""``scripts/bench nets``: training steps of nine nets, and PyTorch's, on one and two threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers.nets import COMPILED, NETS
from benchmarks.rounds import Contest, Contestant, Schedule

THREADS = (1, 2)
SCHEDULE = Schedule(seconds=0.4, starts=0, pause_s=0.1)


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``nets``: a row for each net and number of threads, with the medians of alternating rounds.

    ``us_per_step`` of each contestant, and the ratio of ours to the others'. Raises BenchmarkError
    if a measurement fails.
    """
    return {"nets": [row for name in NETS for row in rows(name, with_peers, say)]}


def rows(name: str, with_peers: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of one net."""
    cases = tuple((NETS[name].batch, threads) for threads in THREADS)
    ours = Contestant("dist_net", "nets", ("numpy",), cases, (name,))
    torch = replace(ours, name="pytorch", module="pytorch_nets", packages=("torch",))
    compiled = replace(torch, name="torch.compile", arguments=(name, "compiled"))
    peers = (torch, compiled) if name in COMPILED else (torch,)
    say(f"measuring {name}")
    with Contest((ours, *(peers if with_peers else ())), Path(), SCHEDULE, say) as contest:
        times = contest.times()
    return [
        {"net": name, "batch": case[0], "threads": case[1], **figures_of(times, case)}
        for case in cases
    ]


def figures_of(times: dict[str, dict[tuple[int, int], float]], case: tuple[int, int]) -> Any:
    """The time of a case, and of each peer with the ratio of ours to it; empty if not measured."""
    own = times["dist_net"][case]
    figures: dict[str, Any] = {"us_per_step": round(own, 1)}
    for name in ("pytorch", "torch.compile"):
        theirs = times.get(name, {}).get(case)
        figures[name] = round(theirs, 1) if theirs else ""
        figures[f"to {name}"] = round(own / theirs, 3) if theirs else ""
    return figures
