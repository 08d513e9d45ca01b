"""ONNX Runtime on EfficientNet-Lite0, as this project exports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import lite0_task
from benchmarks.peers.onnxruntime_inference import session_of
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], lite0_task.Logits]:
    """A session for this batch size, whose run gives the logits (batch, classes)."""
    file = directory / lite0_task.ONNX_FILE
    session = session_of(file, lite0_task.BATCH, batch, threads)
    inputs = {session.get_inputs()[0].name: lite0_task.images(batch)}

    def run() -> lite0_task.Logits:
        logits: lite0_task.Logits = session.run(None, inputs)[0]
        return logits

    return run


if __name__ == "__main__":
    Peer("onnxruntime", load, lite0_task.write_onnx).obey()
