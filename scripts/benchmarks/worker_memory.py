"""The memory of one more inference worker, for ``dist-net bench serving``.

Counted is what a worker shares with no other process (``Private_Clean`` and ``Private_Dirty`` of
proc_pid_smaps(5)), less the buffers that its plans compute in; the weights are mapped once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Task
from benchmarks.load import run
from benchmarks.peers import darknet_task
from benchmarks.served import Gateway, Net, picture_requests
from dist_net.darknet import read_configuration
from dist_net.darknet.network import DarknetNetwork
from dist_net.models.sources import prepared_kernels
from dist_net.nn import Model
from dist_net.nn.inference import Inference

WORKERS = 2  # of one alone the weights would be private too
CONNECTIONS = 32  # twice what they answer at a time, so that batches are full
LOAD_S = 15.0
PATIENCE_S = 60.0
MIB = 1 << 20


def measure(net: Net, say: Callable[[str], None], scale: float = 1.0) -> dict[str, Any]:
    """MiB of each of two workers of a thread each, when they have answered full batches."""
    say(f"memory: {WORKERS} workers of {net.name}")
    requests = picture_requests(net.directory / "memory", net.name, PATIENCE_S)
    with Gateway([net.source], net.directory, "--workers", str(WORKERS)) as gateway:
        gateway.wait_until(lambda pool: len(pool["workers"]) == WORKERS, "all workers are there")
        run(Task(gateway.port, requests, LOAD_S * scale, CONNECTIONS))
        private = [private_bytes(each) for each in gateway.worker_ids()]
    buffers = buffer_bytes(net)
    return {
        "model": net.name,
        "workers": len(private),
        "private_mib": [round(each / MIB, 1) for each in private],
        "buffers_mib": round(buffers / MIB, 1),
        "beside_buffers_mib": round((max(private) - buffers) / MIB, 1),
    }


def private_bytes(process_id: int) -> int:
    """What a process has in memory that it shares with no other."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))]
    return sum(1024 * int(kilobytes) for _, kilobytes, _ in words)


def buffer_bytes(net: Net) -> int:
    """What the plans of a worker of one thread compute in."""
    network = DarknetNetwork(read_configuration(net.directory / darknet_task.CONFIGURATION))
    model = Model(network, network.input_shape, input_dtype=np.float32)
    prepared = prepared_kernels(model, network, net.directory / darknet_task.WEIGHTS).prepared
    session = Inference(model, prepared)
    session.warm_up()
    session.close()
    return session.buffer_bytes
