"""ncnn on the CPU: float32, Winograd's convolution on, one image at a time as it has no batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.peers import darknet_task, ncnn_files
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
    """The net, whose run gives the probabilities (1, classes).

    Raises BenchmarkError for a batch of more than 1.
    """
    import ncnn

    if batch != 1:
        raise BenchmarkError(f"batch={batch}: ncnn has no batches; expected 1")
    net = net_in(directory, threads)
    first = (directory / ncnn_files.PARAMETERS).read_text().splitlines()[2]
    width, height, channels = (int(each.partition("=")[2]) for each in first.split()[-3:])
    (pixels,) = darknet_task.channels_first(1, (height, width, channels))
    image = ncnn.Mat(pixels).clone()

    def run() -> darknet_task.Array:
        extractor = net.create_extractor()
        extractor.input(ncnn_files.INPUT, image)
        _, probabilities = extractor.extract(ncnn_files.OUTPUT)
        return np.array(probabilities)[None]

    return run


def net_in(directory: Path, threads: int) -> Any:
    """The net whose pair of files lies in a directory."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_winograd_convolution = True
    net.opt.use_sgemm_convolution = True
    net.opt.use_packing_layout = True
    # Smaller numbers would be faster than float32, and are not what is compared.
    net.opt.use_fp16_packed = False
    net.opt.use_fp16_storage = False
    net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.load_param(str(directory / ncnn_files.PARAMETERS))
    net.load_model(str(directory / ncnn_files.WEIGHTS))
    return net


if __name__ == "__main__":
    Peer("ncnn", load, ncnn_files.write_ncnn).obey()
