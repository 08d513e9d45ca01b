"""The peers whose training step, or echo, is measured one after the other, on one thread."""

from dataclasses import dataclass

from benchmarks.peers.peer_process import PeerProcess, missing_packages
from benchmarks.peers.task import Case

DEADLINE_S = 120.0


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


def measure_peer(name: str, batch_sizes: tuple[int, ...] = ()) -> PeerResult:
    """Measures the training step of one of `PEERS`, at its own batch sizes unless told otherwise.

    A peer that is not installed is no error: the result says so. One that fails, or takes too long,
    raises `BenchmarkError`.
    """
    peer = PEERS[name]
    if missing := missing_packages(peer.packages):
        return PeerResult(name, unavailable=f"{missing}; pip install -e '.[peers]'")
    with PeerProcess(f"peers.{name}", threads=1, deadline_s=DEADLINE_S) as process:
        sizes = batch_sizes or peer.batch_sizes
        cases = tuple(process.order("measure", size=size) for size in sizes)
        return PeerResult(name, process.order("version"), cases)
