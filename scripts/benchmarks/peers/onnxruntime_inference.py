"""ONNX Runtime on the CPU, float32, with every optimization of graphs that it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import darknet_task, onnx_graph
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
    """A session for this batch size, whose run gives the probabilities (batch, classes)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(onnx_graph.BATCH, batch)
    session = onnxruntime.InferenceSession(
        directory / onnx_graph.FILE, options, providers=["CPUExecutionProvider"]
    )
    _, channels, height, width = session.get_inputs()[0].shape
    inputs = {onnx_graph.INPUT: darknet_task.channels_first(batch, (height, width, channels))}

    def run() -> darknet_task.Array:
        probabilities: darknet_task.Array = session.run(None, inputs)[0]
        return probabilities

    return run


if __name__ == "__main__":
    Peer("onnxruntime", load, onnx_graph.write_onnx).obey()
