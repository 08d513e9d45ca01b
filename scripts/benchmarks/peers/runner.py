"""Runs a peer in a process of its own, on one thread, and reads what it measured."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks import FINDS_BENCHMARKS
from benchmarks.peers.peer_process import missing_packages
from benchmarks.peers.task import Case
from dist_net.errors import BenchmarkError

DEADLINE_S = 120.0

# Caps of BLAS and OpenMP hold only when they are set before the library is loaded.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Peer:
    """What can be measured under one name, and the packages that it needs."""

    packages: tuple[str, ...]
    batch_sizes: tuple[int, ...]


PEERS = {
    "single_process": Peer(("numpy",), (1, 32, 128, 256)),
    "hand_written": Peer(("numpy",), (1, 32, 128, 256)),
    "pytorch_eager": Peer(("torch",), (1, 32, 128, 256)),
    "pytorch_ddp": Peer(("torch",), (32,)),
    "keras_fit": Peer(("keras", "tensorflow"), (1, 32)),
    "zeromq_echo": Peer(("zmq",), ()),
}


@dataclass(frozen=True)
class PeerResult:
    """What a peer's process measured; without cases, `unavailable` says why."""

    name: str
    version: str = ""
    cases: tuple[Case, ...] = ()
    unavailable: str = ""


def measure_peer(
    name: str, batch_sizes: tuple[int, ...] = (), deadline_s: float = DEADLINE_S
) -> PeerResult:
    """Measures the training step of one of `PEERS`, at its own batch sizes unless told otherwise.

    A peer that is not installed is no error: the result says so. One that fails, or takes longer
    than `deadline_s`, raises `BenchmarkError`.
    """
    peer = PEERS[name]
    if missing := missing_packages(peer.packages):
        return PeerResult(name, unavailable=f"{missing}; pip install 'dist-net[peers]'")
    module = f"benchmarks.peers.{name}"
    measured = said_by(module, *map(str, batch_sizes or peer.batch_sizes), deadline_s=deadline_s)
    return PeerResult(name, measured["version"], tuple(measured["cases"]))


def said_by(module: str, *arguments: str, deadline_s: float = DEADLINE_S) -> Any:
    """The JSON that ``python -m module`` prints last, on one thread.

    Raises `BenchmarkError` if it fails, or takes longer than ``deadline_s``.
    """
    name = module.rpartition(".")[2]
    command = [sys.executable, "-m", module, *arguments]
    try:
        finished = subprocess.run(
            command,
            env=FINDS_BENCHMARKS | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{name} did not finish within {deadline_s:g} s") from error
    if finished.returncode != 0:
        reason = finished.stderr.strip().rpartition("\n")[2]
        raise BenchmarkError(
            f"{name} ended with exit code {finished.returncode}: {reason}; "
            f"run `python -m {' '.join([module, *arguments])}` to see all that it says"
        )
    return json.loads(finished.stdout.splitlines()[-1])
