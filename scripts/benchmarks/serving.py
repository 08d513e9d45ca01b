"""``scripts/bench serving``: the inference pool's speed, and what it does under duress.

Nets have seeded weights, load generators are processes of their own on the same processors, and
``scale`` shortens every case alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any, NamedTuple

from benchmarks import duress, http_load, pool_load
from benchmarks.load import run, warm_up
from benchmarks.peers import litserve
from benchmarks.peers.dist_net_inference import FAST, PLAIN
from benchmarks.peers.peer_process import PeerProcess
from benchmarks.served import (
    BATCHES_RAMP_S,
    CLIENTS,
    DARKNET53,
    PATIENCE_S,
    TINY,
    Gateway,
    Net,
    PoolSize,
    image_requests,
    row_requests,
    write_net,
)

Say = Callable[[str], None]
Row = dict[str, Any]
Speeds = dict[int, float]

ROUNDS = 3
ROUND_S = 5.0
ENGINE_S = 5.0
DARKNET53_S = 20.0
CONNECTIONS = (1, CLIENTS)
WINDOW = 128
ENGINE_BATCHES = (4, 8)
CORES = 2
A_WORKER_A_CORE = PoolSize(workers=CORES)  # what the command does of itself
ONE_WORKER = PoolSize(workers=1, threads=CORES)
DARKNET53_POOLS = {"2_workers": A_WORKER_A_CORE, "2_threads": ONE_WORKER}
PAUSE_S = 0.5


def measure(with_peers: bool, say: Say, scale: float = 1.0) -> dict[str, Any]:
    """``results``, ``peers``, ``ratios``, and one object for each kind of duress.

    Raises BenchmarkError if a measurement cannot be completed; not if a figure is missed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        tiny, darknet53 = (write_net(name, directory / name) for name in (TINY, DARKNET53))
        results = tiny_cases(tiny, say, scale)
        peers = peer_cases(directory, say, scale) if with_peers else []
        closed_loops = darknet53_cases(darknet53, say, scale)
        options = A_WORKER_A_CORE.options
        return {
            "results": [*results, *(each.row for each in closed_loops.values())],
            "peers": peers,
            "ratios": {
                **ratios(results, peers),
                **{
                    f"darknet53_{name}_to_engine_best": round(each.share, 3)
                    for name, each in closed_loops.items()
                },
            },
            "overload": duress.overload(darknet53, options, say, scale),
            "reload": duress.reloads(tiny, options, say, scale),
            "chaos": duress.chaos(tiny, options, say, scale),
        }


def tiny_cases(net: Net, say: Say, scale: float) -> list[Row]:
    """HTTP on one and on many connections, and the pipelined client; medians over rounds."""
    requests = row_requests(net.directory / "requests", net.name)
    found: dict[tuple[str, int], list[Row]] = {}
    with Gateway([net.source], net.directory, *A_WORKER_A_CORE.options) as gateway:
        warm_up(gateway.port, requests)
        for turn in range(ROUNDS):
            say(f"round {turn + 1} of {ROUNDS}: tiny model")
            for connections in CONNECTIONS:
                task = http_load.Task(gateway.port, requests, ROUND_S * scale, connections)
                found.setdefault(("http", connections), []).append(run(task))
            pipelined = pool_load.Task(gateway.address, net.name, ROUND_S * scale, WINDOW)
            found.setdefault(("zeromq", 1), []).append(run(pipelined))
    return [
        row_of(interface, net.name, clients, A_WORKER_A_CORE, rounds)
        for (interface, clients), rounds in found.items()
    ]


def row_of(
    interface: str, model: str, clients: int, pool: PoolSize, rounds: Sequence[Mapping[str, Any]]
) -> Row:
    """A case as the command line's JSON has it."""
    return {
        "interface": interface,
        "model": model,
        "clients": clients,
        **pool._asdict(),
        "requests_per_s": round(median(each["requests_per_s"] for each in rounds), 1),
        **{key: round(median(each[key] for each in rounds), 3) for key in ("p50_ms", "p99_ms")},
    }


class ClosedLoop(NamedTuple):
    """What a pool made of Darknet-53: its row, and its share of the engine's best throughput."""

    row: Row
    share: float


def darknet53_cases(net: Net, say: Say, scale: float) -> dict[str, ClosedLoop]:
    """A closed loop of 16 clients, on each of the pools.

    Engine and pools are measured in turn, each while the others wait: a pool's share is of what the
    engine does before and after it, as a shared machine's speed drifts within seconds, at the batch
    size that is its best over all rounds. (Each round's best would be chance, and too high.)
    """
    requests = image_requests(net.directory / "requests", net.name, PATIENCE_S)
    kernels = FAST if find_spec("numba") else PLAIN
    rounds: dict[str, list[Row]] = {name: [] for name in DARKNET53_POOLS}
    engines: dict[str, list[Speeds]] = {name: [] for name in DARKNET53_POOLS}
    with ExitStack() as processes:
        engine = PeerProcess("peers.dist_net_inference", net.directory, kernels)
        processes.enter_context(engine).order("prepare")
        gateways = {
            name: processes.enter_context(gateway_of(net, name, pool))
            for name, pool in DARKNET53_POOLS.items()
        }
        for gateway in gateways.values():
            warm_up(gateway.port, requests)
        before = engine_speeds(engine, ENGINE_S * scale)
        for turn in range(ROUNDS):
            say(f"round {turn + 1} of {ROUNDS}: darknet53")
            for name, gateway in gateways.items():
                task = http_load.Task(
                    gateway.port,
                    requests,
                    DARKNET53_S * scale,
                    CLIENTS,
                    compares=True,
                    ramp_s=BATCHES_RAMP_S,
                )
                rounds[name].append(run(task))
                after = engine_speeds(engine, ENGINE_S * scale)
                engines[name].append({size: (before[size] + after[size]) / 2 for size in after})
                before = after
    size = best_size([speeds for of in engines.values() for speeds in of])
    return {
        name: closed_loop(net.name, pool, rounds[name], [each[size] for each in engines[name]])
        for name, pool in DARKNET53_POOLS.items()
    }


def gateway_of(net: Net, name: str, pool: PoolSize) -> Gateway:
    """A pool whose logs are its own: several of them run at once."""
    directory = net.directory / name
    directory.mkdir()
    return Gateway([net.source], directory, *pool.options)


def closed_loop(
    model: str, pool: PoolSize, rounds: Sequence[Row], best: Sequence[float]
) -> ClosedLoop:
    """Sums up rounds; ``best``: the engine's images a second about the time of each."""
    shares = [each["requests_per_s"] / of for each, of in zip(rounds, best, strict=True)]
    return ClosedLoop(row_of("http", model, CLIENTS, pool, rounds), median(shares))


def engine_speeds(engine: PeerProcess, seconds: float) -> Speeds:
    """The engine's images a second, by the size of its batches."""
    sleep(PAUSE_S)  # the pool's threads spin for a moment before they sleep
    return {
        size: 1e6 * size / float(engine.order("time", batch=size, threads=CORES, seconds=seconds))
        for size in ENGINE_BATCHES
    }


def best_size(rounds: Sequence[Speeds]) -> int:
    """The size of batches that does most, by the median over the rounds."""
    return max(rounds[0], key=lambda size: median(speeds[size] for speeds in rounds))


def peer_cases(directory: Path, say: Say, scale: float) -> list[Row]:
    """LitServe with the tiny model, as its own row; none if it is not installed."""
    if reason := litserve.missing():
        say(f"left out litserve: {reason}")
        return []
    requests = litserve.requests(directory / "litserve-requests")
    rows = []
    with litserve.server(directory) as port:
        for connections in CONNECTIONS:
            say(f"litserve: {connections} connections")
            measured = run(http_load.Task(port, requests, ROUND_S * scale, connections))
            row = row_of("http", TINY, connections, A_WORKER_A_CORE, [measured])  # it has two
            rows.append({"peer": "litserve", "version": litserve.version(), **row})
    return rows


def ratios(results: Sequence[Row], peers: Sequence[Row]) -> dict[str, float]:
    """Ours to theirs: latency on one connection, and requests a second on many."""
    ours = {row["clients"]: row for row in results if row["interface"] == "http"}
    found = {}
    for row in peers:
        own, clients = ours[row["clients"]], row["clients"]
        key = "p50_ms" if clients == 1 else "requests_per_s"
        found[f"{key}_{clients}_clients_to_{row['peer']}"] = round(own[key] / row[key], 3)
    return found
