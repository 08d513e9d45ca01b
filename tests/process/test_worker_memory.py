"""One more inference worker of Darknet-53 costs its buffers and little else: weights are shared."""

from pathlib import Path

import pytest

from benchmarks.http_load import Task
from benchmarks.load import run
from benchmarks.peers.dist_net_inference import model_in
from benchmarks.served import DARKNET53, Gateway, Net, image_requests, write_net
from dist_net.nn.inference import Inference

WORKERS = 2  # of a single one the weights would be private as well
CONNECTIONS = 32  # twice what they answer at a time, so that batches are full
LOAD_S = 15.0
PATIENCE_S = 60.0
LARGEST_BYTES = 80 << 20  # 47 to 57 MiB were seen; the weights are 159 MiB


@pytest.mark.slow
def test_a_worker_has_little_memory_of_its_own_beside_its_buffers(tmp_path: Path) -> None:
    net = write_net(DARKNET53, tmp_path / DARKNET53)
    requests = image_requests(tmp_path / "requests", net.name, PATIENCE_S)
    with Gateway([net.source], tmp_path, "--workers", str(WORKERS)) as gateway:
        gateway.wait_until(lambda pool: len(pool["workers"]) == WORKERS, "all workers are there")
        run(Task(gateway.port, requests, LOAD_S, CONNECTIONS))
        private = [private_bytes(each) for each in gateway.worker_ids()]
    assert len(private) == WORKERS
    assert max(private) - buffer_bytes(net) < LARGEST_BYTES


def private_bytes(process_id: int) -> int:
    """What a process has in memory that it shares with no other; see proc_pid_smaps(5)."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    private = [line for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))]
    return sum(1024 * int(line.split()[1]) for line in private)


def buffer_bytes(net: Net) -> int:
    """What the plans of a worker of one thread compute in."""
    session = Inference(*model_in(net.directory))
    session.warm_up()
    session.close()
    return session.buffer_bytes
