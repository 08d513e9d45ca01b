"""``scripts/bench join``: from ``dist-net train --listen`` to the first update by another host.

The hosts are two network namespaces on a wire, which takes root and iproute2. The line that the
first command prints is pasted as soon as it is there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.recovery import last_record, wait_until
from dist_net.training.server.journal_records import Applied

RECIPE = "fashion-mnist"
TURNS = 5
PATIENCE_S = 60.0
ADDRESS = "10.79.1.{}"


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none joins by a line")
    with ExitStack() as stack:
        hosts = two_hosts(stack)
        turns = []
        for turn in range(1, TURNS + 1):
            directory = Path(stack.enter_context(TemporaryDirectory()))
            printed_s, applied_s = join(hosts, directory)
            turns.append((printed_s, applied_s))
            say(f"turn {turn} of {TURNS}: line {printed_s:.2f} s, first update {applied_s:.2f} s")
    printed, applied = zip(*turns, strict=True)
    case = {
        "recipe": RECIPE,
        "line_printed_s": round(median(printed), 2),
        "first_update_s": round(median(applied), 2),
        "max_s": round(max(applied), 2),
    }
    return {"results": [case], "peers": [], "ratios": {}}


def two_hosts(stack: ExitStack) -> list[list[str]]:
    """What runs a command on either host; they are gone when the stack is closed."""
    names = [f"dist-net-bench-{os.getpid()}-{number}" for number in (1, 2)]
    for name in names:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip(
        "-n",
        names[0],
        "link",
        "add",
        "wire",
        "type",
        "veth",
        "peer",
        "name",
        "wire",
        "netns",
        names[1],
    )
    for number, name in enumerate(names, 1):
        _ip("-n", name, "address", "add", f"{ADDRESS.format(number)}/24", "dev", "wire")
        _ip("-n", name, "link", "set", "wire", "up")
    return [["ip", "netns", "exec", name] for name in names]


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise BenchmarkError(
            f"cannot make network namespaces: {said.strip()}; expected root, and iproute2"
        ) from error


def join(hosts: list[list[str]], directory: Path) -> tuple[float, float]:
    """Seconds from the first command until its line, and until the other host's first update."""
    run, said = directory / "run", directory / "said"
    dist_net = [sys.executable, "-P", "-m", "dist_net"]
    options = ["--workers", "0", "--listen", "tcp://0.0.0.0:5555", "--run-dir", str(run)]
    processes: list[subprocess.Popen[bytes]] = []
    began = monotonic()
    try:
        with said.open("wb") as output:
            train = [*hosts[0], *dist_net, "train", RECIPE, *options]
            processes.append(subprocess.Popen(train, stderr=output))
        wait_until(lambda: token_in(said) is not None, processes[0])
        printed_s = monotonic() - began
        command = [*hosts[1], *dist_net, "join", token_in(said) or ""]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        wait_until(lambda: isinstance(last_record(run), Applied), processes[0])
        return printed_s, monotonic() - began
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(PATIENCE_S)


def token_in(said: Path) -> str | None:
    """The token that a run has printed, if it has."""
    found = re.search(r"echo (\w+) \| dist-net join\n", said.read_text())
    return None if found is None else found[1]
