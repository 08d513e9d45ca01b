"""``scripts/bench nets``: training steps of nine nets, and of peers, on one and two threads.

And the steps of ``fit`` with one and two workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers.fit_nets import STEPS
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
    jax = replace(ours, module="jax_nets", packages=("jax",))
    # JAX cannot change the number of its threads.
    jaxes = [replace(jax, name=f"jax {case[1]}", cases=(case,)) for case in cases]
    fit = replace(ours, name="fit", module="fit_nets")
    peers = [torch, compiled, *jaxes] if name in COMPILED else [torch]
    say(f"measuring {name}")
    with Contest((ours, fit, *(peers if with_peers else ())), Path(), SCHEDULE, say) as contest:
        times = contest.times()
    times["jax"] = {case: us for each in jaxes for case, us in times.get(each.name, {}).items()}
    return [
        {"net": name, "batch": case[0], "threads": case[1], **figures_of(times, case)}
        for case in cases
    ]


def figures_of(times: dict[str, dict[tuple[int, int], float]], case: tuple[int, int]) -> Any:
    """The time of a case, and of each peer with the ratio of ours to it; empty if not measured.

    ``fit us_per_step`` is that of ``fit`` with as many workers as the case has threads.
    """
    own, (batch, _) = times["dist_net"][case], case
    figures: dict[str, Any] = {"us_per_step": round(own, 1)}
    if fit := times.get("fit", {}).get(case):
        figures["fit us_per_step"] = round(fit / STEPS, 1)
        figures["fit speedup"] = round(times["fit"][batch, 1] / fit, 3)
    for name in ("pytorch", "torch.compile", "jax"):
        theirs = times.get(name, {}).get(case)
        figures[name] = round(theirs, 1) if theirs else ""
        figures[f"to {name}"] = round(own / theirs, 3) if theirs else ""
    return figures
