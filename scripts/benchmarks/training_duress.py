"""``scripts/bench training-duress``: a run of local steps whose processes and connections die.

A server and the processes of another host train over a slow link (see ``benchmarks.slow_link``).
Every second or so, the server, a worker, one of its processes or the link is killed. Then the run
is completed: it must have applied each sample once, and a replay must end with the same weights.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any

from benchmarks.join import PATIENCE_S, token_in, two_hosts
from benchmarks.recovery import wait_until
from benchmarks.slow_networks import PORT, PROXY, SERVER, add_proxy_address, dist_net
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.run_directory import RunDirectory

RECIPE, SAMPLES, FAULTS, EVERY_S, SEED = "digits", 1437, 200, (0.3, 2.0), 0
LINK = "100", "5"
KINDS = "server", "worker", "process", "process", "link"


def measure(with_peers: bool, say: Callable[[str], None], scale: float = 1.0) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none joins by a line")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        hosts = two_hosts(stack)
        add_proxy_address(hosts[0])
        run = RunDirectory(directory / "run")
        killed = fight(hosts, directory, round(FAULTS * scale), say)
        epochs = read_checkpoint(run.checkpoint).ledger["next_epoch"] + 1
        train = [*dist_net("train", RECIPE), "--resume", "--run-dir", str(run.path), "--json"]
        summary = printed([*train, "--epochs", str(epochs)])
        replay = printed([*dist_net("replay", str(run.path)), "--json"])
    case = {
        "killed": dict(killed),
        "samples": summary["samples"],
        "samples_expected": epochs * SAMPLES,
        "versions": replay["version"],
        "replay_matches": replay["matches"],
        **{name: summary[name] for name in ("workers_joined", "workers_lost")},
    }
    return {"results": [case], "peers": [], "ratios": {}}


def fight(
    hosts: list[list[str]], directory: Path, faults: int, say: Callable[[str], None]
) -> Counter[str]:
    """Kills until there were so many faults, and ends the run; returns how often each was hit."""
    generator, killed = random.Random(SEED), Counter[str]()
    said, restarts = directory / "said", ["--restarts", "100000"]
    with ExitStack() as stack:
        output = stack.enter_context(said.open("w"))
        link = start_link(hosts[0])
        stack.callback(lambda: link.kill())
        train = [*hosts[0], *dist_net("train", RECIPE), "--workers", "0", "--local-steps", "8"]
        train += ["--listen", f"tcp://{SERVER}:{PORT}", "--contact", PROXY, *restarts]
        train += ["--run-dir", str(directory / "run"), "--epochs", "1000000"]
        train += ["--checkpoint-every", "2"]
        server = subprocess.Popen(train, stderr=output)
        stack.callback(server.kill)
        wait_until(lambda: token_in(said) is not None, server)
        join = [*hosts[1], *dist_net("join"), token_in(said) or "", "--workers", "2", *restarts]
        joined = [subprocess.Popen(join, stderr=subprocess.DEVNULL) for _ in range(2)]
        for process in joined:
            stack.callback(process.kill)
        wait_until(lambda: (directory / "run" / "journal").exists(), server)
        while killed.total() < faults:
            sleep(generator.uniform(*EVERY_S))
            kind = generator.choice(KINDS)
            workers = children(generator.choice(joined).pid)
            victims = {
                "server": children(server.pid),
                "worker": workers,
                "process": [each for worker in workers for each in children(worker)],
                "link": [link.pid],
            }[kind]
            if not victims:
                continue
            with suppress(ProcessLookupError):
                os.kill(generator.choice(victims), signal.SIGKILL)
                killed[kind] += 1
            if kind == "link":
                link.wait()
                link = start_link(hosts[0])
            if killed.total() % 20 == 0:
                say(f"{killed.total()} of {faults}: {dict(killed)}")
        sleep(EVERY_S[1])
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE_S)
    return killed


def start_link(host: list[str]) -> subprocess.Popen[bytes]:
    proxy = [sys.executable, str(Path(__file__).with_name("slow_link.py")), PROXY, PORT]
    return subprocess.Popen([*host, *proxy, SERVER, *LINK], stderr=subprocess.DEVNULL)


def children(process_id: int) -> list[int]:
    """The process ids of a process's children, of all its threads."""
    with suppress(FileNotFoundError, ProcessLookupError):
        threads = Path(f"/proc/{process_id}/task").iterdir()
        lists = [(thread / "children").read_text().split() for thread in threads]
        return [int(child) for each in lists for child in each]
    return []


def printed(command: list[str]) -> dict[str, Any]:
    """The JSON object that a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
