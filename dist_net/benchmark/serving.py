"""``dist-net bench serving``: the inference pool's speed, and what it does under duress.

Nets have seeded weights, load generators are processes of their own on the same processors, and
``scale`` shortens every case alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from dist_net.benchmark import duress, hostile, http_load, pool_load
from dist_net.benchmark.load import run, warm_up
from dist_net.benchmark.peers import litserve
from dist_net.benchmark.peers.dist_net_inference import FAST, PLAIN
from dist_net.benchmark.peers.peer_process import PeerProcess
from dist_net.benchmark.served import (
    DARKNET53,
    TINY,
    Gateway,
    Net,
    picture_requests,
    row_requests,
    write_net,
)

Say = Callable[[str], None]
Row = dict[str, Any]

ROUNDS = 3
ROUND_S = 5.0
ENGINE_S = 5.0
DARKNET53_S = 20.0
CONNECTIONS = (1, 16)
WINDOW = 128
ENGINE_BATCHES = (4, 8)
THREADS = 2
TINY_POOL = ("--workers", "2")
# One worker on both processors has all of the weights' traffic once, two have it twice.
DARKNET53_POOL = ("--workers", "1", "--threads", str(THREADS))
PATIENCE_S = 60.0
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
        darknet_row, share, capacity = darknet53_case(darknet53, say, scale)
        return {
            "results": [*results, darknet_row],
            "peers": peers,
            "ratios": {**ratios(results, peers), "darknet53_to_engine_best": round(share, 3)},
            "overload": duress.overload(darknet53, DARKNET53_POOL, capacity, say, scale),
            "reload": duress.reloads(tiny, TINY_POOL, say, scale),
            "chaos": duress.chaos(tiny, TINY_POOL, say, scale),
            "hostile": hostile.measure(tiny, TINY_POOL, say, scale),
        }


def tiny_cases(net: Net, say: Say, scale: float) -> list[Row]:
    """HTTP on one and on many connections, and the pipelined client; medians over rounds."""
    requests = row_requests(net.directory / "requests", net.name)
    found: dict[tuple[str, int], list[Row]] = {}
    with Gateway([net.source], net.directory, *TINY_POOL) as gateway:
        warm_up(gateway.port, requests)
        for turn in range(ROUNDS):
            say(f"round {turn + 1} of {ROUNDS}: tiny model")
            for connections in CONNECTIONS:
                task = http_load.Task(gateway.port, requests, ROUND_S * scale, connections)
                found.setdefault(("http", connections), []).append(run(task))
            pipelined = pool_load.Task(gateway.address, net.name, ROUND_S * scale, WINDOW)
            found.setdefault(("zeromq", 1), []).append(run(pipelined))
    return [row_of(interface, net.name, clients, of) for (interface, clients), of in found.items()]


def row_of(interface: str, model: str, clients: int, rounds: Sequence[Mapping[str, Any]]) -> Row:
    """A case as the command line's JSON has it."""
    return {
        "interface": interface,
        "model": model,
        "clients": clients,
        "requests_per_s": round(median(each["requests_per_s"] for each in rounds), 1),
        **{key: round(median(each[key] for each in rounds), 3) for key in ("p50_ms", "p99_ms")},
    }


def darknet53_case(net: Net, say: Say, scale: float) -> tuple[Row, float, float]:
    """A closed loop of 16 clients: its row, its share of the engine's best, and requests a second.

    Engine and pool are measured in turn, each while the other one waits.
    """
    requests = picture_requests(net.directory / "requests", net.name, PATIENCE_S)
    kernels = FAST if find_spec("numba") else PLAIN
    rounds, best = [], []
    with PeerProcess("dist_net_inference", net.directory, kernels) as engine:
        engine.order("prepare")
        with Gateway([net.source], net.directory, *DARKNET53_POOL) as gateway:
            warm_up(gateway.port, requests)
            for turn in range(ROUNDS):
                say(f"round {turn + 1} of {ROUNDS}: darknet53")
                best.append(engine_images_per_s(engine, ENGINE_S * scale))
                task = http_load.Task(
                    gateway.port, requests, DARKNET53_S * scale, CONNECTIONS[-1], compares=True
                )
                rounds.append(run(task))
    shares = [of["requests_per_s"] / images for of, images in zip(rounds, best, strict=True)]
    row = row_of("http", net.name, CONNECTIONS[-1], rounds)
    return row, median(shares), row["requests_per_s"]


def engine_images_per_s(engine: PeerProcess, seconds: float) -> float:
    """The engine's own best, over its batch sizes."""
    sleep(PAUSE_S)  # the pool's threads spin for a moment before they sleep
    return max(
        1e6 * batch / float(engine.order("time", batch=batch, threads=THREADS, seconds=seconds))
        for batch in ENGINE_BATCHES
    )


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
            row = row_of("http", TINY, connections, [measured])
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
