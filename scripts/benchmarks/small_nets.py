"""``scripts/bench small-nets``: outputs of small nets on one thread, and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.small_net_outputs import NETS
from benchmarks.rounds import Contest, Contestant, Medians, Schedule

OURS = "reproducible", "irreproducible", "predict"
PEER = "onnxruntime"
CASES = ((1, 1), (32, 1))
SCHEDULE = Schedule(seconds=0.2, starts=0, pause_s=0.02)


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``nets``: a row for each net and batch size, with the medians of alternating rounds.

    Microseconds of each way to compute the outputs, and their ratio to ONNX Runtime's. Raises
    BenchmarkError if a measurement fails.
    """
    found = []
    for name in NETS:
        contestants = [
            Contestant(engine, "small_net_outputs", ("numpy",), CASES, (name, engine))
            for engine in OURS
        ]
        if with_peers:
            packages = "onnxruntime", "onnx"
            contestants.append(Contestant(PEER, "small_net_outputs", packages, CASES, (name, PEER)))
        say(f"measuring {name}")
        with Contest(contestants, Path(), SCHEDULE, say) as contest:
            times = contest.times()
        found += [{"net": name, "batch": case[0], **figures_of(times, case)} for case in CASES]
    return {"nets": found}


def figures_of(times: dict[str, Medians], case: tuple[int, int]) -> dict[str, float]:
    """The times of a case, and the ratios of ours to the peer's if it was measured."""
    figures = {f"{name} us": round(of[case], 1) for name, of in times.items()}
    if PEER in times:
        figures |= {
            f"{name} to {PEER}": round(times[name][case] / times[PEER][case], 2) for name in OURS
        }
    return figures
