"""ONNX Runtime on the CPU, float32, with every optimization of graphs that it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import darknet_task, onnx_graph
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
    """A session for this batch size, whose run gives the probabilities (batch, classes)."""
    session = session_of(directory / onnx_graph.FILE, onnx_graph.BATCH, batch, threads)
    _, channels, height, width = session.get_inputs()[0].shape
    inputs = {onnx_graph.INPUT: darknet_task.channels_first(batch, (height, width, channels))}

    def run() -> darknet_task.Array:
        probabilities: darknet_task.Array = session.run(None, inputs)[0]
        return probabilities

    return run


def session_of(file: Path, free_dimension: str, batch: int, threads: int) -> Any:
    """A session for one batch size, the length of the input's free dimension."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(free_dimension, batch)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    Peer("onnxruntime", load, onnx_graph.write_onnx).obey()
