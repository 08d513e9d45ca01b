"""The answer to an inference request of the Open Inference Protocol; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from dist_net.errors import QuestionError
from dist_net.pictures.predictions import likeliest
from dist_net.serving.http.open_inference.request import OUTPUT, Wanted
from dist_net.serving.http.open_inference.tensors import bytes_of_elements
from dist_net.serving.pool.requests import Outcome, Payload


def encode_response(
    model: str, rows: int, outcomes: Sequence[Outcome], wanted: Wanted
) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are JSON if raw ones follow; all outcomes are OK.

    Their ``rows`` become one output, (rows, classes) float32; or (rows, top) BYTES,
    ``value:index:label`` from the likeliest on, where classes are wanted, with the labels of the
    version that answered. ``model`` is the name that was asked.
    Raises QuestionError for outputs that are not finite, unless they are wanted in binary.
    """
    payload = outcomes[0].payload if len(outcomes) == 1 else b"".join(o.payload for o in outcomes)
    probabilities = np.frombuffer(payload, "<f4").reshape(rows, -1, copy=False)
    if (wanted.top or not wanted.is_binary) and not np.isfinite(probabilities).all():
        raise QuestionError(
            "outputs for this input are not finite, which JSON and class names cannot say; "
            "expected an input in the net's range, or a request for binary outputs"
        )
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32"}
    data: Any = probabilities.reshape(-1, copy=False)
    raw: Payload = payload
    if wanted.top:
        data = _classified(probabilities, wanted.top, outcomes[0].labels)
        output["datatype"] = "BYTES"
        raw = bytes_of_elements(text.encode() for text in data) if wanted.is_binary else b""
    output["shape"] = [rows, len(data) // rows]
    if wanted.is_binary:
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = data
    response: dict[str, Any] = {
        "model_name": model,
        "model_version": str(outcomes[0].version),
        "outputs": [output],
    }
    if wanted.request_id:
        response["id"] = wanted.request_id
    text = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return (text + raw, len(text)) if wanted.is_binary else (text, None)


def _classified(probabilities: NDArray[np.float32], top: int, labels: Sequence[str]) -> list[str]:
    """Row by row the ``top`` classes, as the extension for classification writes them."""
    return [
        f"{row[index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for row, best in zip(probabilities, likeliest(probabilities, top), strict=True)
        for index in best
    ]
