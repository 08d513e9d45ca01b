"""OpenVINO on the CPU, float32, tuned for latency."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import darknet_task, onnx_graph
from benchmarks.peers.orders import Peer


def load(directory: Path, batch: int, threads: int) -> Callable[[], darknet_task.Array]:
    """A compiled model for this batch size, whose run gives the probabilities (batch, classes)."""
    import openvino

    core = openvino.Core()
    model = core.read_model(directory / onnx_graph.FILE)
    channels, height, width = (each.get_length() for each in list(model.input().partial_shape)[1:])
    model.reshape([batch, channels, height, width])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16, it is the default
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    inputs = {0: darknet_task.channels_first(batch, (height, width, channels))}

    def run() -> darknet_task.Array:
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
        probabilities: darknet_task.Array = outputs[0]
        return probabilities

    return run


if __name__ == "__main__":
    Peer("openvino", load, onnx_graph.write_onnx).obey()
