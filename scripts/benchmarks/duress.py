"""Overload, reloads and dying workers: what the inference pool does while they last."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from benchmarks.http_load import Task
from benchmarks.load import Load, run, warm_up
from benchmarks.served import (
    BATCHES_RAMP_S,
    CLIENTS,
    PATIENCE_S,
    Gateway,
    Net,
    image_requests,
    row_requests,
)
from dist_net.serving.client.client import Client

Say = Callable[[str], None]
Case = dict[str, Any]

OVERLOAD_S, OVERLOAD, DEADLINE_S = 60.0, 10.0, 2.0
CAPACITY_S = 20.0
RELOAD_S, RELOAD_EVERY_S, RELOAD_RATE = 60.0, 1.0, 500.0
CHAOS_S, FAULT_EVERY_S, CHAOS_CONNECTIONS = 300.0, 2.0, 16
CHAOS_PATIENCE_S = 10.0
FAULTS = ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "stopped"))
SEED = 0


def overload(net: Net, options: Sequence[str], say: Say, scale: float) -> Case:
    """An open loop at ten times the capacity, each request with a deadline.

    The capacity is that of closed loops of patient clients, before and after it.
    """
    patient = image_requests(net.directory / "capacity", net.name, PATIENCE_S)
    requests = image_requests(net.directory / "overload", net.name, DEADLINE_S)
    with Gateway([net.source], net.directory, *options) as gateway:
        closed = Task(gateway.port, patient, CAPACITY_S * scale, CLIENTS, ramp_s=BATCHES_RAMP_S)
        warm_up(gateway.port, patient)
        before = run(closed)["requests_per_s"]
        rate = OVERLOAD * before
        say(f"overload: {rate:.0f} requests/s for {OVERLOAD_S * scale:g} s")
        measured = run(
            Task(
                gateway.port,
                requests,
                OVERLOAD_S * scale,
                CLIENTS,
                rate=rate,
                deadline_s=DEADLINE_S,
            )
        )
        capacity = (before + run(closed)["requests_per_s"]) / 2
    refused = measured["statuses"].get("503", 0)
    admitted = sum(measured["statuses"].values()) - refused
    in_time = measured["statuses"].get("200", 0) - measured["late"]
    return {
        "offered_per_s": round(rate, 1),
        "capacity_per_s": round(capacity, 1),
        "goodput_to_capacity": round(measured["in_time_per_s"] / capacity, 3),
        "admitted_in_time": round(in_time / max(admitted, 1), 5),
        **case_of(measured, "p99_ms", "refusal_p50_ms", "refusal_p99_ms"),
    }


def reloads(net: Net, options: Sequence[str], say: Say, scale: float) -> Case:
    """A steady load without and with a reload each second, in turn; p99 of each."""
    requests = row_requests(net.directory / "reload", net.name)
    with Gateway([net.source], net.directory, *options) as gateway:
        say(f"reloads: each second for {RELOAD_S * scale:g} s")
        task = Task(gateway.port, requests, RELOAD_S * scale, 4, RELOAD_RATE, compares=True)
        warm_up(gateway.port, requests)
        before = run(task)
        versions = []
        with Client(gateway.address, timeout_s=60.0) as client, Load(task) as load:
            while load.is_running:
                due = monotonic() + RELOAD_EVERY_S
                versions.append(client.reload(net.name))
                sleep(max(0.0, due - monotonic()))
            measured = load.result()
        after = run(task)
    without_ms = (before["p99_ms"] + after["p99_ms"]) / 2
    return {
        "reloads": len(versions),
        "p99_ms_without": round(without_ms, 3),
        "p99_to_without": round(measured["p99_ms"] / without_ms, 3),
        **case_of(measured, "p99_ms"),
    }


def chaos(net: Net, options: Sequence[str], say: Say, scale: float) -> Case:
    """Workers are killed and stopped, in turn, under a closed loop of clients.

    Whoever answers, the answer to the same request has to be the same, to the last bit.
    """
    say(f"chaos: a worker killed or stopped every {FAULT_EVERY_S:g} s for {CHAOS_S * scale:g} s")
    requests = row_requests(net.directory / "chaos", net.name, CHAOS_PATIENCE_S)
    with Gateway([net.source], net.directory, *options) as gateway:
        task = Task(
            gateway.port,
            requests,
            CHAOS_S * scale,
            CHAOS_CONNECTIONS,
            compares=True,
            is_exact=True,
        )
        with Load(task) as load:
            hit = hit_workers(gateway, lambda: load.is_running)
            measured = load.result()
    return {**hit, **case_of(measured, "p99_ms")}


def hit_workers(
    gateway: Gateway,
    goes_on: Callable[[], bool],
    faults: Sequence[tuple[signal.Signals, str]] = FAULTS,
    every_s: float = FAULT_EVERY_S,
) -> dict[str, int]:
    """Kills or stops one of the gateway's workers now and then, while a load goes on."""
    generator = random.Random(SEED)
    hit = {name: 0 for _, name in faults}
    while goes_on():
        sleep(every_s)
        number, name = generator.choice(faults)
        workers = gateway.worker_ids()
        if workers and goes_on():
            with suppress(ProcessLookupError):  # it has just been replaced
                os.kill(generator.choice(workers), number)
                hit[name] += 1
    return hit


def case_of(measured: dict[str, Any], *times: str) -> Case:
    """What every kind of duress tells of its load, and the times that are named."""
    statuses = measured["statuses"]
    return {
        "requests": sum(statuses.values()),
        "answered": statuses.get("200", 0),
        "refused": statuses.get("503", 0),
        "other_statuses": {key: n for key, n in statuses.items() if key not in ("200", "503")},
        "wrong": measured["wrong"],
        "requests_per_s": round(measured["requests_per_s"], 1),
        **{key: measured[key] for key in times},
        "errors": measured["errors"],
    }
