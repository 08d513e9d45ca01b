"""``scripts/bench takeover``: from the death of the server's host to the next applied result.

Three hosts, see ``benchmarks.hosts``: a server with a worker, a standby with a worker, and one more
worker. All processes of the server's host are killed, and its directory is deleted. Then the lost
host returns, empty, as the standby of the new server, whose host is killed next.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.hosts import Host, hosts_on_a_switch
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Applied, Started

RECIPE = "fashion-mnist"
TRIALS = 50
EPOCHS = 100_000
PATIENCE_S = 60.0
COPIED_S = 3.0  # at least, before the next host is killed
TOKENS = re.compile(r"echo (\w+) \| dist-net join")


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none has a standby without shared storage")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        server, standby, third = hosts_on_a_switch(stack, 3, directory)
        listen = ("--workers", "1", "--listen", f"tcp://{server.address}:5555")
        server.run("train", RECIPE, "--epochs", str(EPOCHS), *listen, "--run-dir", "run")
        tokens = _tokens(server)
        third.run("join", "--workers", "1", given=tokens[0])
        seconds, repeated = [], []
        for trial in range(1, TRIALS + 1):
            _stand_by(standby, tokens[1])
            sleep(COPIED_S + random.random())
            seconds.append(_lose(server, standby))
            repeated.append(_repeated(standby))
            say(f"trial {trial} of {TRIALS}: {seconds[-1]:.2f} s, {repeated[-1]:,} samples again")
            server, standby = standby, server
            tokens = _tokens(server)
        times = {
            "median_s": round(median(seconds), 2),
            "p99_s": round(quantiles(seconds, n=100)[-1], 2),
            "max_s": round(max(seconds), 2),
        }
        case = {"fault": "the server's host dies", "trials": TRIALS, "takeover_after_s": 5.0}
    return {
        "results": [case | times | {"samples_again": median(repeated)}],
        "peers": [],
        "ratios": {},
    }


def _tokens(host: Host) -> list[str]:
    """Return the tokens for workers and for standbys that the host has printed."""
    _await(lambda: len(TOKENS.findall(host.said())) >= 2, f"no token of {host.name}")
    return TOKENS.findall(host.said())


def _stand_by(host: Host, token: str) -> None:
    shutil.rmtree(host.directory)
    host.directory.mkdir()
    options = ("--workers", "1", "--run-dir", "run", "--listen", f"tcp://{host.address}:5555")
    host.run("join", *options, given=token)
    _await((host.directory / "run" / "checkpoint.safetensors").exists, f"no copy on {host.name}")


def _lose(server: Host, standby: Host) -> float:
    """Return the seconds from the death of the server's host to the next applied result."""
    server.kill()
    killed_s = monotonic()
    shutil.rmtree(server.directory)
    server.directory.mkdir()
    _await(lambda: _goes_on(standby), f"{standby.name} does not go on: {standby.said()}")
    return monotonic() - killed_s


def _goes_on(host: Host) -> bool:
    """Whether the host has applied a result since its server started."""
    path = host.directory / "run" / "journal"
    return "the server is lost" in host.said() and isinstance(_last(path), Applied)


def _last(path: Path) -> object:
    """The last start or applied result in a journal."""
    found = None
    for record in read_journal(path).records():
        if isinstance(record, Applied | Started):
            found = record
    return found


def _repeated(host: Host) -> int:
    found = re.findall(r"([\d,]+) samples are done again", host.said())
    return int(found[-1].replace(",", "")) if found else 0


def _await(condition: Callable[[], bool], fault: str) -> None:
    until_s = monotonic() + PATIENCE_S
    while not condition():
        if monotonic() > until_s:
            raise BenchmarkError(fault)
        sleep(0.01)
