"""``fit``'s training steps of the nets of ``scripts/bench nets``, with one or more processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.peers.nets import NETS, recipe
from benchmarks.peers.orders import Peer
from dist_net.training.run.fit import SingleProcess

STEPS = 32  # of a run: processes exchange states before and after it


def load(_directory: Path, _batch: int, workers: int) -> Callable[[], np.float32]:
    """A function that takes ``STEPS`` steps of the net on the command line; it returns the loss."""
    net = NETS[sys.argv[2]]
    found, dataset = recipe(net)
    inputs, targets = (np.concatenate([each] * STEPS) for each in net.arrays())
    dataset = replace(dataset, train_inputs=inputs, train_targets=targets)
    threadpool_limits(1)
    training = SingleProcess(found, dataset, workers=workers)
    return lambda: np.float32(training.train(0, 0, len(inputs))[0] / len(inputs))


if __name__ == "__main__":
    Peer("dist-net", load).obey()
