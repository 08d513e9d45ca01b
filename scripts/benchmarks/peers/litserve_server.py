"""LitServe's process: ``python -m benchmarks.peers.litserve_server PORT``.

784 numbers to 10 classes, by NumPy. Its workers import the model's class from here.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from litserve import LitAPI, LitServer

WORKERS = 2
INPUTS, CLASSES = 784, 10
SEED = 0


class TinyModel(LitAPI):  # type: ignore[misc]
    """One dense layer and a softmax."""

    def setup(self, device: Any) -> None:
        """Draws the weights."""
        generator = np.random.default_rng(SEED)
        self.kernel = generator.standard_normal((INPUTS, CLASSES)).astype(np.float32)

    # LitServe reads the annotation of ``request``; with none it gives the body's JSON.
    def decode_request(self, request, **_: Any) -> Any:  # type: ignore[no-untyped-def]
        """The numbers as an array."""
        return np.array(request["input"], np.float32)

    def predict(self, inputs: Any, **_: Any) -> Any:
        """The probabilities."""
        logits = inputs @ self.kernel
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    def encode_response(self, output: Any, **_: Any) -> Any:
        """As JSON has them."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = LitServer(TinyModel(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
