"""OpenVINO on EfficientNet-Lite0, as this project exports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import lite0_task
from benchmarks.peers.openvino_inference import request_of, run_of
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], lite0_task.Logits]:
    """A compiled model for this batch size, whose run gives the logits (batch, classes)."""
    request = request_of(directory / lite0_task.ONNX_FILE, batch, threads)
    return run_of(request, lite0_task.images(batch))


if __name__ == "__main__":
    Peer("openvino", load, lite0_task.write_onnx).obey()
