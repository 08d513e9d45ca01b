"""``scripts/bench push-pull``: the round trip of a gradient and new weights, without the compute.

It is measured in two ways: one after the other, which is how long new weights take; and as a
worker does it, which has other minibatches to compute meanwhile and pushes several gradients
together, which is what each of them costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import round_trips, synthetic
from benchmarks.peers.peer_process import PeerProcess
from benchmarks.peers.runner import measure_peer
from dist_net.training.server.settings import LEASE_MINIBATCHES

ROUNDS = 5
TRANSPORTS = ("shared-memory", round_trips.TCP)


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them; medians of rounds.

    A round trip of the same bytes takes half as long again from one process to the next, ours and
    the peer's alike, so they are measured in turn. Raises BenchmarkError if a measurement fails.
    """
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in TRANSPORTS}
    echoes: list[dict[str, Any]] = []
    for turn in range(1, ROUNDS + 1):
        for name, of in rounds.items():
            say(f"round {turn} of {ROUNDS}: {name}")
            of.append(measure_transport(name))
        if with_peers:
            say(f"round {turn} of {ROUNDS}: zeromq_echo")
            size = rounds[round_trips.TCP][0]["bytes"]
            echoes.append({"peer": "zeromq_echo", **measure_peer("zeromq_echo", (size,)).cases[0]})
    results = [of_rounds(of) for of in rounds.values()]
    if not with_peers:
        return {"results": results, "peers": [], "ratios": {}}
    tcp, echo = results[-1], of_rounds(echoes)
    ratios = {
        "tcp_to_zeromq_echo": round(tcp["median_ms"] / echo["median_ms"], 3),
        "tcp_overlapped_to_zeromq_echo": round(tcp["overlapped_ms"] / echo["median_ms"], 3),
    }
    return {"results": results, "peers": [echo], "ratios": ratios}


def of_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The case with the medians of its rounds."""
    times = [name for name in rounds[0] if name.endswith("_ms")]
    return {
        **rounds[0],
        **{name: round(median(each[name] for each in rounds), 4) for name in times},
    }


def measure_transport(transport: str) -> dict[str, Any]:
    """``median_ms`` of what is done one after the other, and ``overlapped_ms``, the mean."""
    alone, overlapped = waits(transport, 1), waits(transport, LEASE_MINIBATCHES)
    return {
        "transport": transport,
        "bytes": 4 * synthetic.recipe.model.layout.size,
        "median_ms": alone["median_ms"],
        "overlapped_ms": overlapped["mean_ms"],
    }


def waits(transport: str, lease_minibatches: object, deadline_s: float = 120.0) -> dict[str, Any]:
    """The median and the mean wait for new weights, in milliseconds."""
    with PeerProcess(
        "round_trips", transport, lease_minibatches, threads=1, deadline_s=deadline_s
    ) as process:
        measured: dict[str, Any] = process.order("waits")
        return measured
