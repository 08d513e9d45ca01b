"""OpenVINO on the CPU, float32, tuned for latency."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import darknet_task, onnx_graph
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
    """A compiled model for this batch size, whose run gives the probabilities (batch, classes)."""
    request = request_of(directory / onnx_graph.FILE, batch, threads)
    _, channels, height, width = request.model_inputs[0].shape
    return run_of(request, darknet_task.channels_first(batch, (height, width, channels)))


def request_of(file: Path, batch: int, threads: int) -> Any:
    """A request of a model that is compiled for one batch size."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([batch, *list(model.input().partial_shape)[1:]])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16, it is the default
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(model, "CPU", settings).create_infer_request()


def run_of(request: Any, inputs: NDArray[Any]) -> Callable[[], NDArray[np.float32]]:
    """A function whose run gives the outputs for these inputs."""

    def run() -> NDArray[np.float32]:
        outputs = request.infer({0: inputs}, share_inputs=True, share_outputs=True)
        found: NDArray[np.float32] = outputs[0]
        return found

    return run


if __name__ == "__main__":
    Peer("openvino", load, onnx_graph.write_onnx).obey()
