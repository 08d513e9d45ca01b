"""This project's inference of EfficientNet-Lite0, measured as its peers are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import lite0_task
from benchmarks.peers.dist_net_inference import OPTIONS
from benchmarks.peers.orders import Peer
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nn.inference import Inference, prepare


def load(_directory: Path, batch: int, threads: int) -> Callable[[], lite0_task.Logits]:
    """A function whose run gives the logits (batch, classes) of the task's images."""
    prepared = prepare(lite0.model(), lite0.read_weights())
    inference = Inference(lite0.model(), prepared, threads, batch, **OPTIONS[sys.argv[2]])
    inputs = lite0_task.images(batch)
    return lambda: inference(inputs)


if __name__ == "__main__":
    Peer("dist-net", load).obey()
